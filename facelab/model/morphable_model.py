"""A 3D morphable face model: shape, expression, diffuse and specular albedo as linear bases.

    vertices = mean + sum_i alpha_i S_i + sum_j delta_j E_j        (Blanz and Vetter 1999)
    albedo   = mean + sum_k beta_k A_k                             (diffuse RGB and specular F0 jointly)

All bases are stored per standard deviation: the prior of every coefficient is N(0, 1).
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelab.model.contour import visible_contour
from facelab.model.model_file import decode, read_checked, refine, write_model
from facelab.model.people import draw_expressions, draw_people
from facelab.support.errors import ModelFileError, ParameterError
from facelab.support.files import DATA, guarded
from facelab.support.tensors import constant, finite, one_line, send

REGIONS = ("skin", "lips", "lids", "eyes", "interior", "teeth")
DEFAULT_MODEL = DATA / "face_model.safetensors"
SKIN_F0 = 0.028  # reflectance of skin at normal incidence, where a model has no specular albedo
MIN_DIFFUSE = 0.004


def _empty() -> Tensor:
    return torch.empty(0)


@one_line
@dataclass
class MorphableModel:
    """A face model of V vertices and T triangles, as tensors on one device.

    Only `mean` and `triangles` are needed; every part that a converted model lacks may be left out.
    Units: millimetres, linear reflectance. Raises ModelFileError if the shapes of the parts do not fit.
    """

    mean: Tensor
    """(V, 3) mm."""
    triangles: Tensor
    """(T, 3) int64, counter-clockwise from outside."""
    identity_basis: Tensor = field(default_factory=_empty)
    """(Ki, V, 3) mm per standard deviation."""
    expression_basis: Tensor = field(default_factory=_empty)
    """(Ke, V, 3) mm per standard deviation, about the neutral face."""
    identity_sigma: Tensor = field(default_factory=_empty)
    """(Ki,) RMS displacement in mm of one standard deviation; computed from the basis if left out."""
    expression_sigma: Tensor = field(default_factory=_empty)
    """(Ke,) RMS displacement in mm."""
    albedo_mean: Tensor = field(default_factory=_empty)
    """(V, 4) linear diffuse RGB and specular F0. (V, 3) gets a constant F0 of 0.028; nothing gives grey."""
    albedo_basis: Tensor = field(default_factory=_empty)
    """(Ka, V, 4) per standard deviation ((Ka, V, 3) without specular)."""
    albedo_sigma: Tensor = field(default_factory=_empty)
    """(Ka,) RMS change of reflectance."""
    details: Tensor = field(default_factory=_empty)
    """(D, V, 4) what the basis does not hold of single skins (hair, pores), as a share of the albedo."""
    uv: Tensor = field(default_factory=_empty)
    """(U, 2) in [0, 1], origin at the lower left as in OBJ: texture row = (1 - v) * height."""
    uv_triangles: Tensor = field(default_factory=_empty)
    """(T, 3) int64 into `uv`."""
    triangle_region: Tensor = field(default_factory=_empty)
    """(T,) uint8 into `regions`; all skin if left out."""
    mouth_cap: Tensor = field(default_factory=_empty)
    """(C, 3) int64: triangles that close the opening between the lips (for the inner-mouth loss)."""
    mirror: Tensor = field(default_factory=_empty)
    """(V,) int64: the vertex on the other side of the face."""
    landmark_triangles: Tensor = field(default_factory=_empty)
    """(68,) int64: the triangle each landmark lies on."""
    landmark_weights: Tensor = field(default_factory=_empty)
    """(68, 3) barycentric weights."""
    contour_rows: Tensor = field(default_factory=_empty)
    """(17, R) int64: vertices across the cheek along which jaw landmark 0..16 slides; -1 fills up."""
    actions: Tensor = field(default_factory=_empty)
    """(N, Ke): expression coefficients of named facial actions at full strength."""
    action_names: tuple[str, ...] = ()
    regions: tuple[str, ...] = REGIONS
    people_identity: Tensor = field(default_factory=_empty)
    """(P, Ki): coefficients of people the model was made from, with whose help `sample` draws."""
    people_albedo: Tensor = field(default_factory=_empty)
    """(P, Ka): the same people's albedo coefficients."""
    name: str = "unnamed"
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        v, t = len(self.mean), len(self.triangles)
        for kind in ("identity", "expression"):
            basis = getattr(self, f"{kind}_basis")
            if basis.numel() == 0:
                setattr(self, f"{kind}_basis", self.mean.new_zeros(0, v, 3))
            elif getattr(self, f"{kind}_sigma").numel() == 0:
                setattr(self, f"{kind}_sigma", basis.square().sum(-1).mean(-1).sqrt())
        if self.albedo_mean.numel() == 0:
            self.albedo_mean = self.mean.new_full((v, 3), 0.4)
        if self.albedo_mean.shape[-1] == 3:
            f0 = self.mean.new_full((v, 1), SKIN_F0)
            self.albedo_mean = torch.cat([self.albedo_mean, f0], -1)
        if self.albedo_basis.numel() == 0:
            self.albedo_basis = self.mean.new_zeros(0, v, 4)
        elif self.albedo_basis.shape[-1] == 3:
            self.albedo_basis = torch.nn.functional.pad(self.albedo_basis, (0, 1))
        if len(self.albedo_basis) and self.albedo_sigma.numel() == 0:
            self.albedo_sigma = self.albedo_basis.square().mean((1, 2)).sqrt()
        if self.triangle_region.numel() == 0:
            self.triangle_region = torch.zeros(t, dtype=torch.uint8, device=self.mean.device)
        self._check()

    def _check(self) -> None:
        v, t = len(self.mean), len(self.triangles)
        expected: dict[str, tuple[int | None, ...]] = {
            "mean": (v, 3),
            "triangles": (t, 3),
            "identity_basis": (None, v, 3),
            "identity_sigma": (len(self.identity_basis),),
            "expression_basis": (None, v, 3),
            "expression_sigma": (len(self.expression_basis),),
            "albedo_mean": (v, 4),
            "albedo_basis": (None, v, 4),
            "albedo_sigma": (len(self.albedo_basis),),
            "details": (None, v, 4),
            "uv": (None, 2),
            "uv_triangles": (t, 3),
            "triangle_region": (t,),
            "mouth_cap": (None, 3),
            "mirror": (v,),
            "landmark_triangles": (68,),
            "landmark_weights": (68, 3),
            "contour_rows": (17, None),
            "actions": (len(self.action_names), len(self.expression_basis)),
            "people_identity": (None, len(self.identity_basis)),
            "people_albedo": (len(self.people_identity), len(self.albedo_basis)),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor.numel() == 0:
                continue
            fits = tensor.ndim == len(shape) and all(w in (None, g) for g, w in zip(tensor.shape, shape))
            if not fits:
                wanted = tuple("any" if size is None else size for size in shape)
                raise ModelFileError(
                    f"The face model's {name!r} has shape {tuple(tensor.shape)} instead of {wanted}; "
                    "build or convert the model again."
                )
        for one, other in (("landmark_triangles", "landmark_weights"), ("uv", "uv_triangles")):
            if (getattr(self, one).numel() == 0) != (getattr(self, other).numel() == 0):
                raise ModelFileError(f"The face model has only one of {one!r} and {other!r}; build it again.")
        limits = {"triangles": v, "mouth_cap": v, "mirror": v, "landmark_triangles": t, "contour_rows": v}
        limits["uv_triangles"] = len(self.uv)
        for name, limit in limits.items():
            ids = getattr(self, name)
            lowest = -1 if name == "contour_rows" else 0
            looked_at = ids.numel() and ids.device.type == "cpu"  # as it came from a file; a GPU would wait
            if looked_at and (ids.min() < lowest or ids.max() >= limit):
                raise ModelFileError(f"The face model's {name!r} points outside the mesh; build it again.")

    # --- files ----------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        subdivisions: int = 1,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "MorphableModel":
        """Load a model file; None means the open model that ships with facelab.

        The shipped model is kept on a coarse quad mesh and refined by `subdivisions` (0, 1 or 2: about
        2,600, 10,000 or 40,000 vertices) Catmull-Clark steps. Other files hold triangles; they are taken as
        they are.
        Raises ModelFileError if the file is missing, truncated, of a wrong structure, or does not have the
        SHA-256 written in the file beside it (`<name>.sha256`; the shipped model must have one).
        """
        tensors, header = read_checked(Path(path or DEFAULT_MODEL), must_have_digest=path is None)
        with guarded(f"The face model {path or 'of facelab'} lacks a part; get it again", ModelFileError):
            if "quads" in tensors:
                parts = refine(tensors, subdivisions)
            else:
                parts = {name: decode(tensors, name) for name in tensors if not name.endswith(".scale")}
            for name in ("regions", "action_names"):
                if name in header:
                    parts[name] = tuple(str(text) for text in json.loads(header[name]))
            allowed = {f.name for f in fields(cls)}
            parts = {name: part for name, part in parts.items() if name in allowed}
            model = cls(**parts, name=header.get("name", "unnamed"), metadata=header)
        return model.to(device, dtype)

    def save(self, path: str | Path) -> None:
        """Write this model as it is (no subdivision) and its SHA-256 beside it, for `load`."""
        tensors = {name: part.cpu().contiguous() for name, part in self._tensors().items() if part.numel()}
        header = self.metadata | {
            "name": self.name,
            "regions": json.dumps(self.regions),
            "action_names": json.dumps(self.action_names),
        }
        write_model(Path(path), tensors, header)

    def _tensors(self) -> dict[str, Tensor]:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    def _replace(self, **parts: Any) -> "MorphableModel":
        return MorphableModel(**({f.name: getattr(self, f.name) for f in fields(self)} | parts))

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "MorphableModel":
        """A copy on another device or with another floating-point type; index tensors stay integers."""
        return self._replace(
            **{
                name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
                for name, tensor in self._tensors().items()
            }
        )

    def truncate(
        self, identity: int | None = None, expression: int | None = None, albedo: int | None = None
    ) -> "MorphableModel":
        """A model with the first components only (None keeps all). Raises ParameterError for too many."""
        parts: dict[str, Any] = {}
        for kind, count in (("identity", identity), ("expression", expression), ("albedo", albedo)):
            if count is None:
                continue
            basis = getattr(self, f"{kind}_basis")
            if not 0 <= count <= len(basis):
                raise ParameterError(f"Cannot keep {count} of {len(basis)} {kind} components.")
            parts[f"{kind}_basis"] = basis[:count]
            parts[f"{kind}_sigma"] = getattr(self, f"{kind}_sigma")[:count]
            coefficients = "actions" if kind == "expression" else f"people_{kind}"
            parts[coefficients] = getattr(self, coefficients)[..., :count]
        return self._replace(**parts)

    # --- evaluation -----------------------------------------------------------------------------------------

    def vertices(self, identity: Tensor | None = None, expression: Tensor | None = None) -> Tensor:
        """Vertices (..., V, 3) in mm for identity (..., Ki) and expression (..., Ke) in standard deviations.

        Leading dimensions broadcast; another floating-point type becomes the model's. Raises ParameterError
        for a wrong size or values that are not finite.
        """
        result = self.mean
        if identity is not None:
            result = result + _combine("identity", identity, self.identity_basis)
        if expression is not None:
            result = result + _combine("expression", expression, self.expression_basis)
        return result

    def albedo(
        self, coefficients: Tensor | None = None, detail: Tensor | int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Linear diffuse albedo (..., V, 3) in [0.004, 1] and specular F0 (..., V) in [0, 1].

        `coefficients` (..., Ka) in standard deviations; `detail` (...) picks one of `details` (hair, pores)
        and multiplies by one plus it. Raises ParameterError for a wrong size, a value that is not finite, or
        a detail that does not exist.
        """
        result = self.albedo_mean
        if coefficients is not None:
            result = result + _combine("albedo", coefficients, self.albedo_basis)
        if detail is not None:
            index = torch.as_tensor(detail, device=self.mean.device)
            if index.numel() and (index.min() < 0 or index.max() >= len(self.details)):
                raise ParameterError(f"The model has {len(self.details)} albedo details; got index {detail}.")
            result = result * (1 + self.details[index])
        return result[..., :3].clamp(MIN_DIFFUSE, 1), result[..., 3].clamp(0, 1)

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        identity_scale: float = 1.0,
        expression_scale: float = 1.0,
        albedo_scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """Draw coefficients {"identity": (count, Ki), "expression": (count, Ke), "albedo": (count, Ka)}.

        All have mean zero and the given standard deviation per component, the prior that fitting assumes; see
        `people.draw_people` and `people.draw_expressions`.
        """
        sizes = len(self.identity_basis), len(self.albedo_basis)
        identity, albedo = draw_people(self.people_identity, self.people_albedo, sizes, count, generator)
        expression = draw_expressions(
            self.actions, self.action_names, len(self.expression_basis), count, generator
        )
        return {
            "identity": identity_scale * send(identity, self.mean),
            "expression": expression_scale * send(expression, self.mean),
            "albedo": albedo_scale * send(albedo, self.mean),
        }

    def landmarks(self, vertices: Tensor, rotation: Tensor | None = None) -> Tensor:
        """The 68 landmarks (..., 68, 3) of `vertices` (..., V, 3), in the space of the vertices.

        With `rotation` (..., 3, 3) from model to camera, jaw landmarks slide along `contour_rows` to the
        point that lies furthest to the head's side in the picture: on a turned head the annotated jaw line is
        the visible contour, not a fixed line on the skin. The choice is discrete; gradients flow into the
        chosen points.
        """
        index, weight = self.landmark_embedding(vertices, rotation)
        batch, flat = index.shape[:-2], index.flatten(-2)[..., None].expand(*index.shape[:-2], -1, 3)
        corners = vertices.expand(*batch, *vertices.shape[-2:]).gather(-2, flat).unflatten(-2, (68, 3))
        return (corners * weight[..., None]).sum(-2)

    @torch.no_grad()
    def landmark_embedding(self, vertices: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Which vertices make the landmarks: indices (..., 68, 3) and barycentric weights (..., 68, 3).

        Arguments as of `landmarks`; a jaw landmark that has slid is one vertex three times.
        """
        batch = vertices.shape[:-2]
        if rotation is not None:
            batch = torch.broadcast_shapes(batch, rotation.shape[:-2])
        corners = self.triangles[self.landmark_triangles]
        index = corners.expand(*batch, 68, 3)
        weight = self.landmark_weights.expand(*batch, 68, 3)
        if rotation is None or self.contour_rows.numel() == 0:
            return index, weight
        points = (vertices[..., corners[:17], :] * self.landmark_weights[:17, :, None]).sum(-2)
        chosen, slid = visible_contour(points, vertices, self.contour_rows, rotation)
        vertex = constant(weight, 1.0, 0.0, 0.0)
        jaw = torch.where(slid, chosen, index[..., :17, :])
        share = torch.where(slid, vertex, weight[..., :17, :])
        return torch.cat([jaw, index[..., 17:, :]], -2), torch.cat([share, weight[..., 17:, :]], -2)

    def region_vertices(self, name: str) -> Tensor:
        """Which vertices (V,) bool belong to a triangle of the region. Raises ParameterError for its name."""
        if name not in self.regions:
            raise ParameterError(f"There is no region {name!r}; the model has {', '.join(self.regions)}.")
        chosen = torch.zeros(len(self.mean), dtype=torch.bool, device=self.mean.device)
        chosen[self.triangles[self.triangle_region == self.regions.index(name)].ravel()] = True
        return chosen


def _combine(kind: str, coefficients: Tensor, basis: Tensor) -> Tensor:
    """sum_k c_k B_k for coefficients (..., K) and basis (K, V, C)."""
    if coefficients.shape[-1:] != basis.shape[:1]:
        raise ParameterError(
            f"The model has {len(basis)} {kind} components, but the coefficients have shape "
            f"{tuple(coefficients.shape)}; the last dimension must be {len(basis)}."
        )
    if not finite(coefficients):
        raise ParameterError(f"The {kind} coefficients contain NaN or infinity; check the step before.")
    flat = coefficients.to(basis.dtype) @ basis.flatten(1)
    return flat.reshape(*coefficients.shape[:-1], *basis.shape[1:])
