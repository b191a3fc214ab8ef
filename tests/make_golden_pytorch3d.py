"""Render small scenes with the real PyTorch3D and keep its buffers for tests/test_rasterizer.py.

    python tests/make_golden_pytorch3d.py      # in an environment with PyTorch3D; made with version 0.7.9

Points are given to PyTorch3D in its own camera space and through its own camera, and to us by the formula of
a pinhole, so that the golden buffers also check our screen conventions.
"""

from pathlib import Path

import numpy as np
import torch
import trimesh

FOLDER = Path(__file__).parent / "golden"


def scenes() -> dict[str, tuple[np.ndarray, np.ndarray, int, int, float, bool]]:
    """Camera-space points (+x right, +y up, looking along -z), triangles, height, width, focal, cull."""
    random = np.random.default_rng(7)

    def bumpy(level: int, centre: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
        ball = trimesh.creation.icosphere(level)
        bumps = 1 + 0.15 * np.sin(4 * ball.vertices[:, :1] + 1) * np.cos(5 * ball.vertices[:, 1:2])
        turned = ball.vertices * bumps @ trimesh.transformations.euler_matrix(0.4, 0.7, 0.2)[:3, :3]
        return turned + np.array(centre), ball.faces

    soup = random.uniform((-2, -2, -9), (2, 2, -1), (80, 3)).repeat(3, 0) + random.normal(0, 0.7, (240, 3))
    soup[:, 2] = np.minimum(soup[:, 2], -0.3)
    return {
        "wide": (*bumpy(2, (0.1, -0.05, -4)), 48, 64, 80.0, True),
        "partly_outside": (*bumpy(4, (-0.6, 0.9, -4)), 56, 40, 90.0, True),
        "both_sides_close": (*bumpy(1, (0.0, 0.0, -1.8)), 40, 40, 20.0, False),
        "soup": (soup, np.arange(240).reshape(-1, 3), 48, 40, 40.0, False),
    }


def main() -> None:
    from pytorch3d.renderer import MeshRasterizer, PerspectiveCameras, RasterizationSettings
    from pytorch3d.structures import Meshes

    FOLDER.mkdir(exist_ok=True)
    for name, (points, triangles, height, width, focal, cull) in scenes().items():
        points = points.astype(np.float32)
        camera = PerspectiveCameras(
            focal_length=focal,
            principal_point=((width / 2 + 1.25, height / 2 - 0.75),),
            image_size=((height, width),),
            in_ndc=False,
        )
        rasterizer = MeshRasterizer(
            camera,
            RasterizationSettings(
                image_size=(height, width), perspective_correct=True, cull_backfaces=cull, bin_size=0
            ),
        )
        mesh = Meshes(torch.tensor(points * (-1, 1, -1)).float()[None], torch.tensor(triangles)[None])
        found = rasterizer(mesh)
        x = width / 2 + 1.25 - focal * points[:, 0] / points[:, 2]
        y = height / 2 - 0.75 + focal * points[:, 1] / points[:, 2]
        np.savez_compressed(
            FOLDER / f"pytorch3d_{name}.npz",
            screen=np.stack([x, y, -points[:, 2]], -1).astype(np.float32),
            triangles=triangles.astype(np.int32),
            cull=cull,
            face_index=found.pix_to_face[0, ..., 0].numpy().astype(np.int16),
            depth=found.zbuf[0, ..., 0].numpy(),
            barycentric=found.bary_coords[0, :, :, 0].numpy(),
        )
        print(name, (found.pix_to_face >= 0).float().mean().item())


if __name__ == "__main__":
    main()
