import math

import pytest
import torch
import trimesh

from facelab.geometry.mesh import check_triangles, normalise, triangle_normals, vertex_normals
from facelab.geometry.rotations import euler_to_matrix, matrix_to_euler
from facelab.support.errors import MeshError

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])


def sphere(subdivisions: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return torch.tensor(mesh.vertices, dtype=dtype), torch.tensor(mesh.faces, dtype=torch.int64)


def naive_vertex_normals(vertices: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(vertices)
    for i, j, k in triangles.tolist():
        area = torch.linalg.cross(vertices[j] - vertices[i], vertices[k] - vertices[i])
        for corner in (i, j, k):
            total[corner] += area
    return total / total.norm(dim=-1, keepdim=True)


def axis_rotation(axis: int, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.eye(3, dtype=torch.float64)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


@DTYPES
def test_vertex_normals_match_a_loop(dtype: torch.dtype, tolerance: float) -> None:
    vertices, triangles = sphere(1, dtype)
    vertices = vertices * torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    torch.testing.assert_close(
        vertex_normals(vertices, triangles), naive_vertex_normals(vertices, triangles), atol=tolerance, rtol=0
    )


@DTYPES
def test_normals_of_a_sphere_point_outwards(dtype: torch.dtype, tolerance: float) -> None:
    vertices, triangles = sphere(4, dtype)
    assert (vertex_normals(vertices, triangles) * vertices).sum(-1).min() > 0.9999
    # The plane of three points on a sphere is equally far from the centre at each, and on the positive side.
    distances = (triangle_normals(vertices, triangles)[:, None] * vertices[triangles]).sum(-1)
    assert distances.min() > 0.99
    assert (distances.amax(1) - distances.amin(1)).max() < 10 * tolerance


def test_normals_of_a_batch() -> None:
    vertices, triangles = sphere(2)
    stack = torch.stack([vertices * torch.tensor([1.0, 1 + k, 2.0]) for k in range(6)]).view(
        2, 3, *vertices.shape
    )
    for function in (vertex_normals, triangle_normals):
        batch = function(stack, triangles)
        assert batch.shape[:2] == (2, 3)
        torch.testing.assert_close(batch[1, 2], function(stack[1, 2], triangles))


def test_normals_turn_with_the_mesh() -> None:
    vertices, triangles = sphere(2)
    vertices = vertices * torch.tensor([1.0, 2.0, 0.5])
    rotation = euler_to_matrix(torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64))
    turned = vertex_normals(vertices @ rotation.mT + 5.0, triangles)
    torch.testing.assert_close(turned, vertex_normals(vertices, triangles) @ rotation.mT)


def test_normals_without_area_are_zero_and_have_no_gradient() -> None:
    line = torch.tensor(
        [[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [5, 5, 5]], dtype=torch.float64, requires_grad=True
    )
    normals = vertex_normals(line, torch.tensor([[0, 1, 2]]))
    normals.sum().backward()
    assert (normals == 0).all()
    assert line.grad is not None and (line.grad == 0).all()


def test_normal_gradients() -> None:
    vertices, triangles = sphere(0)
    vertices.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, triangles), vertices)
    assert torch.autograd.gradcheck(lambda v: triangle_normals(v, triangles), vertices)


@DTYPES
def test_euler_matrix_is_the_product_of_axis_rotations(dtype: torch.dtype, tolerance: float) -> None:
    pitch, yaw, roll = 0.3, -0.7, 1.2
    expected = axis_rotation(2, roll) @ axis_rotation(1, yaw) @ axis_rotation(0, pitch)
    matrix = euler_to_matrix(torch.tensor([pitch, yaw, roll], dtype=dtype))
    torch.testing.assert_close(matrix, expected.to(dtype), atol=tolerance, rtol=0)


@DTYPES
def test_euler_round_trip(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    angles = (2 * torch.rand(4, 50, 3, generator=generator, dtype=dtype) - 1) * torch.tensor([3.1, 1.5, 3.1])
    angles = angles.to(dtype)
    # Near yaw = ±90° float32 resolves the angles only to the square root of its precision.
    torch.testing.assert_close(matrix_to_euler(euler_to_matrix(angles)), angles, atol=50 * tolerance, rtol=0)


def test_gimbal_lock_keeps_the_rotation() -> None:
    matrix = euler_to_matrix(torch.tensor([0.3, math.pi / 2, 0.5], dtype=torch.float64))
    angles = matrix_to_euler(matrix)
    assert angles[2] == 0
    torch.testing.assert_close(euler_to_matrix(angles), matrix, atol=1e-6, rtol=0)


def test_rotation_gradients() -> None:
    angles = torch.tensor([[0.1, -0.4, 0.2], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(euler_to_matrix, angles)
    assert torch.autograd.gradcheck(lambda a: matrix_to_euler(euler_to_matrix(a)), angles)


def test_normalise_at_zero() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], dtype=torch.float64, requires_grad=True)
    unit = normalise(x)
    torch.testing.assert_close(unit, torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]], dtype=torch.float64))
    unit.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and (x.grad[0] == 0).all()
    assert torch.autograd.gradcheck(normalise, torch.tensor([[1.0, -2.0, 0.5]]).double().requires_grad_())


def test_bad_triangles() -> None:
    check_triangles(torch.tensor([[0, 1, 2]]), 3)
    check_triangles(torch.zeros(0, 3, dtype=torch.int64), 0)
    with pytest.raises(MeshError, match="0 to 3"):
        check_triangles(torch.tensor([[0, 1, 3]]), 3)
    with pytest.raises(MeshError, match="-1 to 2"):
        check_triangles(torch.tensor([[0, -1, 2]]), 3)
    with pytest.raises(MeshError, match="int64"):
        check_triangles(torch.tensor([[0.0, 1.0, 2.0]]), 3)
    with pytest.raises(MeshError, match=r"\(1, 4\)"):
        check_triangles(torch.tensor([[0, 1, 2, 3]]), 4)
