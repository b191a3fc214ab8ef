import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from facelab.geometry.mesh import normalise
from facelab.rendering.illumination import (
    CLAMPED_COSINE,
    BlinnPhongLight,
    PhongLight,
    SphericalHarmonicsLight,
    ambient_to_sh,
    blinn_phong_lobe,
    directional_to_sh,
    phong_lobe,
    schlick_fresnel,
    sh_basis,
    sh_irradiance,
)

DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
EYE = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)


def unit_vectors(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalise(torch.randn(*shape, 3, generator=generator, dtype=torch.float64))


def sphere_quadrature(lowest: float, polar: int = 64, azimuth: int = 64) -> tuple[Tensor, Tensor]:
    """Directions `(N, 3)` and weights `(N,)` over z in [lowest, 1]; exact for polynomials of low degree."""
    nodes, weights = np.polynomial.legendre.leggauss(polar)
    z = torch.from_numpy(lowest + (nodes + 1) * (1 - lowest) / 2).repeat_interleave(azimuth)
    angle = (2 * math.pi / azimuth * torch.arange(azimuth, dtype=torch.float64)).repeat(polar)
    ring = (1 - z * z).sqrt()
    directions = torch.stack([ring * angle.cos(), ring * angle.sin(), z], -1)
    areas = torch.from_numpy(weights * (1 - lowest) / 2).repeat_interleave(azimuth) * 2 * math.pi / azimuth
    return directions, areas


def light_at(
    direction: Tensor, kind: type, shininess: float, **options: bool
) -> PhongLight | BlinnPhongLight:
    """A white, practically distant light without any other light."""
    position, colour = 1e9 * direction, torch.ones(3, dtype=torch.float64)
    s = torch.tensor(shininess, dtype=torch.float64)
    if kind is PhongLight:
        return PhongLight(torch.zeros(3, dtype=torch.float64), position, colour, s, **options)
    return BlinnPhongLight(torch.zeros(9, 3, dtype=torch.float64), position, colour, s, **options)


def highlight(light: PhongLight | BlinnPhongLight, normal: Tensor, to_eye: Tensor, f0: float) -> Tensor:
    """Radiance of the highlight of a black surface point at the origin."""
    origin = torch.zeros(1, 3, dtype=torch.float64)
    specular = torch.tensor([f0], dtype=torch.float64)
    return light.shade(normal, origin, to_eye, origin, specular).colour[..., 0, 0]


# Spherical harmonics


def test_basis_is_orthonormal() -> None:
    directions, areas = sphere_quadrature(-1.0)
    basis = sh_basis(directions)
    gram = basis.mT @ (areas[:, None] * basis)
    torch.testing.assert_close(gram, torch.eye(9, dtype=torch.float64), atol=1e-12, rtol=0)


@DTYPES
def test_basis_values_in_the_documented_order(dtype: torch.dtype, tolerance: float) -> None:
    """The constants as Ramamoorthi and Hanrahan 2001 print them (Eq. 3)."""
    x, y, z = normal = normalise(torch.tensor([0.5, -0.3, 0.8], dtype=dtype))
    polynomials = torch.stack(
        [x.new_tensor(1.0), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y],
    )
    constants = [0.282095] + 3 * [0.488603] + [1.092548, 1.092548, 0.315392, 1.092548, 0.546274]
    torch.testing.assert_close(sh_basis(normal), polynomials * x.new_tensor(constants), atol=1e-5, rtol=0)


def test_constant_light_shades_evenly() -> None:
    colour = torch.tensor([0.7, 0.5, 0.2], dtype=torch.float64)
    shading = sh_irradiance(unit_vectors(20), ambient_to_sh(colour))
    torch.testing.assert_close(shading, colour.expand(20, 3))


def test_clamped_cosine_factors() -> None:
    """A_l = 2π ∫ P_l(u) u du over [0, 1], integrated."""
    directions, areas = sphere_quadrature(0.0)
    u = directions[:, 2]
    for expected, legendre in zip(CLAMPED_COSINE, (u**0, u, (3 * u * u - 1) / 2)):
        assert float((areas * legendre * u).sum()) == pytest.approx(expected, abs=1e-12)


def test_shading_is_the_integral_over_the_hemisphere() -> None:
    """Any light of nine coefficients: E(n)/π = 1/π ∫ L(w) max(0, n.w) dw, against A_l L_lm H_lm(n) / π."""
    radiance = torch.randn(9, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kernel = (
        torch.tensor([CLAMPED_COSINE[b] for b in (0, 1, 1, 1, 2, 2, 2, 2, 2)], dtype=torch.float64) / math.pi
    )
    directions, areas = sphere_quadrature(0.0)
    for normal in unit_vectors(5):
        tangent = normalise(torch.linalg.cross(normal, unit_vectors(1, seed=9)[0]))
        frame = torch.stack([tangent, torch.linalg.cross(normal, tangent), normal])
        incoming = sh_basis(directions @ frame) @ radiance
        integral = (areas[:, None] * incoming * directions[:, 2:]).sum(0) / math.pi
        torch.testing.assert_close(sh_irradiance(normal[None], kernel[:, None] * radiance)[0], integral)


def test_directional_light_in_closed_form() -> None:
    light, normals = unit_vectors(1)[0], unit_vectors(500, seed=1)
    cosine = normals @ light
    shading = sh_irradiance(normals, directional_to_sh(light, torch.ones(3, dtype=torch.float64)))[:, 0]
    torch.testing.assert_close(shading, 3 / 32 + cosine / 2 + 15 / 32 * cosine**2)
    assert (shading - cosine.clamp(min=0)).abs().max() <= 3 / 32 + 1e-12
    # No nine coefficients are nearer to the clamped cosine: the residual is orthogonal to the whole basis.
    directions, areas = sphere_quadrature(-1.0, polar=400)
    approximation = sh_basis(directions) @ directional_to_sh(EYE[0], torch.ones(3, dtype=torch.float64))[:, 0]
    residual = directions[:, 2].clamp(min=0) - approximation
    assert (sh_basis(directions).mT @ (areas * residual)).abs().max() < 1e-5


def test_lights_add() -> None:
    a, b = unit_vectors(2)
    colours = torch.tensor([[1.0, 0.5, 0.2], [0.1, 0.2, 0.9]], dtype=torch.float64)
    each = directional_to_sh(torch.stack([a, b]), colours)
    assert each.shape == (2, 9, 3)
    normals = unit_vectors(30, seed=2)
    together = sh_irradiance(normals, each.sum(0))
    torch.testing.assert_close(together, sh_irradiance(normals, each).sum(0))


# Lobes


def test_lobes_at_known_angles() -> None:
    shininess = torch.tensor(10.0, dtype=torch.float64)
    angle = torch.linspace(0, 1.5, 20, dtype=torch.float64)
    light = torch.stack([angle.sin(), 0 * angle, angle.cos()], -1)
    normal = EYE.expand(20, 3)
    # Seen along the normal, the mirrored ray is `angle` away from the eye and the half vector half of that.
    torch.testing.assert_close(phong_lobe(normal, light, normal, shininess), angle.cos() ** 10)
    half = normalise(light + normal)
    torch.testing.assert_close(blinn_phong_lobe(normal, half, shininess), (angle / 2).cos() ** 10)
    # At the mirror direction both peak at exactly 1.
    mirrored = light * torch.tensor([-1.0, 1.0, 1.0])
    one = torch.ones(20, dtype=torch.float64)
    torch.testing.assert_close(phong_lobe(normal, light, mirrored, shininess), one)
    torch.testing.assert_close(blinn_phong_lobe(normal, normalise(light + mirrored), shininess), one)


def test_light_behind_the_surface_gives_no_highlight() -> None:
    behind = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    grazing = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    for kind in (PhongLight, BlinnPhongLight):
        assert float(highlight(light_at(behind, kind, 5.0), EYE, grazing, 0.5)) == 0
    # Nor where the mirrored ray, which then runs into the surface, passes near an eye at a grazing angle.
    eye = normalise(torch.tensor([[-1.0, 0.0, 0.1]], dtype=torch.float64))
    assert float(highlight(light_at(behind, PhongLight, 5.0, normalised=False), EYE, eye, 0.5)) == 0


def test_fresnel() -> None:
    f0 = torch.tensor(0.028, dtype=torch.float64)
    cosine = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    expected = torch.tensor([0.028, 0.028 + 0.972 / 32, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schlick_fresnel(f0, cosine), expected)


@pytest.mark.parametrize("shininess", [1.0, 5.0, 20.0, 100.0])
def test_energy_of_the_highlights(shininess: float) -> None:
    """The share of light from all directions that a white mirror-like surface sends along its normal."""
    directions, areas = sphere_quadrature(0.0, polar=200)
    s = shininess
    blinn_phong = (s + 8) * (s + 2 ** (-s / 2)) / ((s + 2) * (s + 4))  # the integral of (s+8)/8π (n.h)^s cos
    for kind, expected in ((PhongLight, 1.0), (BlinnPhongLight, blinn_phong)):
        radiance = highlight(light_at(directions, kind, shininess), EYE, EYE, 1.0)
        assert float((areas * radiance).sum() / math.pi) == pytest.approx(expected, rel=1e-9), kind
    assert (
        0.9 < blinn_phong < 1.1 or s < 5
    )  # the customary factor is an approximation, good for shiny surfaces


def test_peaks_of_the_two_forms() -> None:
    for kind, normalised_peak in ((PhongLight, 0.028 * 22 / 2), (BlinnPhongLight, 0.028 * 28 / 8)):
        assert float(highlight(light_at(EYE[0], kind, 20.0), EYE, EYE, 0.028)) == pytest.approx(
            normalised_peak
        )
        as_printed = light_at(EYE[0], kind, 20.0, normalised=False)
        assert float(highlight(as_printed, EYE, EYE, 0.028)) == pytest.approx(0.028)


def test_equation_5_of_the_2022_paper() -> None:
    """c_s = t_s [Nor(v_out - v_in) . n]^φ, v_in running from the light to the surface."""
    p, n, v_out = 50 * unit_vectors(7), unit_vectors(7, seed=1), unit_vectors(7, seed=2)
    position = torch.tensor([100.0, 200.0, 300.0], dtype=torch.float64)
    v_in = normalise(p - position)
    t_s, phi = torch.linspace(0.01, 0.1, 7, dtype=torch.float64), torch.tensor(12.0, dtype=torch.float64)
    expected = t_s * (normalise(v_out - v_in) * n).sum(-1).clamp(min=0) ** phi
    zero, one = torch.zeros(9, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    light = BlinnPhongLight(zero, position, one, phi, normalised=False)
    shading = light.shade(n, p, v_out, torch.zeros_like(n), t_s)
    torch.testing.assert_close(shading.specular_radiance, expected[:, None].expand(7, 3))


# Lights


def test_phong_diffuse_is_lambert_plus_ambient() -> None:
    normals, positions = unit_vectors(50), 100 * unit_vectors(50, seed=1)
    position = torch.tensor([100.0, 300.0, 500.0], dtype=torch.float64)
    ambient = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    colour = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    light = PhongLight(ambient, position, colour, torch.tensor(20.0, dtype=torch.float64))
    albedo = unit_vectors(50, seed=4).abs()
    shading = light.shade(normals, positions, unit_vectors(50, seed=5), albedo, None)
    for i in range(50):
        ray = position - positions[i]
        cosine = max(0.0, float(normals[i] @ ray / ray.norm()))
        torch.testing.assert_close(shading.diffuse_shading[i], ambient + colour * cosine)
    torch.testing.assert_close(shading.colour, albedo * shading.diffuse_shading)
    assert (shading.specular_radiance == 0).all()


def all_lights(*batch: int) -> list[SphericalHarmonicsLight | PhongLight | BlinnPhongLight]:
    generator = torch.Generator().manual_seed(5)

    def uniform(*shape: int) -> Tensor:
        return torch.rand((*batch, *shape), generator=generator, dtype=torch.float64)

    position, shininess = 100 + 200 * uniform(3), 5 + 10 * uniform()
    return [
        SphericalHarmonicsLight(uniform(9, 3)),
        PhongLight(uniform(3), position, uniform(3), shininess),
        PhongLight(uniform(3), position, uniform(3), shininess, normalised=False),
        BlinnPhongLight(uniform(9, 3), position, uniform(3), shininess),
        BlinnPhongLight(uniform(9, 3), position, uniform(3), shininess, normalised=False),
    ]


def surface(count: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    to_eye = normalise(unit_vectors(count, seed=1) * 0.2 + EYE)
    normals = normalise(unit_vectors(count) * 0.5 + EYE)
    albedo = unit_vectors(count, seed=3).abs()
    return normals, 50 * unit_vectors(count, seed=2), to_eye, albedo, albedo[:, 0] * 0.1 + 0.01


@pytest.mark.parametrize("kind", range(5))
def test_batches_of_lights_and_sums(kind: int) -> None:
    lights = all_lights(2, 3)[kind]
    arguments = surface()
    shading = lights.shade(*arguments)
    albedo = arguments[3]
    assert (
        shading.colour.shape
        == shading.diffuse_shading.shape
        == shading.specular_radiance.shape
        == (2, 3, 4, 3)
    )
    torch.testing.assert_close(shading.colour, albedo * shading.diffuse_shading + shading.specular_radiance)
    one = type(lights)(*(v[1, 2] if isinstance(v, Tensor) else v for v in vars(lights).values()))
    torch.testing.assert_close(one.shade(*arguments).colour, shading.colour[1, 2])
    matt = one.shade(*arguments[:4], None)
    torch.testing.assert_close(matt.colour, albedo * shading.diffuse_shading[1, 2])


@pytest.mark.parametrize("kind", range(5))
def test_shading_gradients(kind: int) -> None:
    light = all_lights()[kind]
    parameters = [v.requires_grad_() for v in vars(light).values() if isinstance(v, Tensor)]
    options = [v for v in vars(light).values() if not isinstance(v, Tensor)]
    inputs = [v.requires_grad_() for v in surface()]

    def shade(*tensors: Tensor) -> Tensor:
        return type(light)(*tensors[5:], *options).shade(*tensors[:5]).colour

    assert torch.autograd.gradcheck(shade, (*inputs, *parameters))


@pytest.mark.parametrize("function", [sh_basis, lambda n: directional_to_sh(n, n.abs() + 1), ambient_to_sh])
def test_spherical_harmonics_gradients(function: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(function, unit_vectors(3).requires_grad_())


def test_empty_pixels_have_finite_gradients() -> None:
    """The background of a rendered map is a list of zeros; it must not poison the gradients of the rest."""
    for light in all_lights():
        zeros = [torch.zeros_like(v).requires_grad_() for v in surface()]
        shading = light.shade(*zeros)
        assert (shading.colour == 0).all()
        shading.colour.sum().backward()
        assert all(v.grad is None or torch.isfinite(v.grad).all() for v in zeros)
