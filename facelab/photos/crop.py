"""Square crops of a face, and masks."""

from dataclasses import dataclass

import torch
from scipy.spatial import ConvexHull
from skimage.draw import polygon2mask
from torch import Tensor
from torch.nn.functional import interpolate as resize

from facelab.photos.load import check_image
from facelab.support.errors import ParameterError
from facelab.support.tensors import one_line

BORDER = 0.15  # of the face's size: nearer to the photo's border dlib's error grows from 0.5 to 2 % and more


@one_line
@dataclass(frozen=True)
class Crop:
    """A square piece of a photo, resampled to S×S.

    `image` (3, S, S); `landmarks` (68, 2) in crop px; `matrix` (3, 3) maps photo px to crop px, homogeneous.

    `inside` (1, S, S) bool: the pixels that lie on the photo. Beyond its border `image` repeats the edge:
    such pixels are no observations. `confidence` (68,) in [0, 1]: how far each landmark can be trusted, 1
    well inside the photo, 0 outside (see `landmark_confidence`); `missing` in [0, 1]: the share of the
    face (the landmarks' box) that lies outside.
    """

    image: Tensor
    landmarks: Tensor
    inside: Tensor
    matrix: Tensor
    confidence: Tensor
    missing: float

    def to_crop(self, points: Tensor) -> Tensor:
        """Photo px (..., 2) -> crop px."""
        matrix = self.matrix.to(points)
        return points @ matrix[:2, :2].T + matrix[:2, 2]

    def to_photo(self, points: Tensor) -> Tensor:
        """Crop px (..., 2) -> photo px."""
        matrix = self.matrix.to(points)
        return (points - matrix[:2, 2]) @ torch.linalg.inv(matrix[:2, :2]).T

    def paste(self, photo: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """A copy of `photo` (3, H, W), covered by `image` (3, S, S) where `mask` (1, S, S) in [0, 1] is 1."""
        side = round(image.shape[-1] / float(self.matrix[0, 0]))
        left, top = (round(v) for v in self.to_photo(torch.zeros(2, dtype=torch.float64)).tolist())
        layer = torch.cat([image * mask, mask.to(image)])  # premultiplied: no dark seam at the mask's edge
        layer = resize(layer[None], (side, side), mode="bilinear", antialias=True)[0].to(photo)
        height, width = photo.shape[-2:]
        rows = slice(max(top, 0), max(min(top + side, height), 0))
        columns = slice(max(left, 0), max(min(left + side, width), 0))
        layer = layer[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        result = photo.clone()
        result[:, rows, columns] = layer[:3] + (1 - layer[3:]) * photo[:, rows, columns]
        return result


def crop_face(
    image: Tensor, landmarks: Tensor, size: int = 240, scale: float = 1.6, up: float = 0.08
) -> Crop:
    """Cut a square around 68 landmarks (68, 2) out of a (3, H, W) picture and resample it to `size`×`size`.

    The square is `scale` times the larger side of the landmarks' box, moved up by `up` of its own side, and
    starts and ends on whole photo pixels, so that the picture is resampled once (bicubic, antialiased).
    The default shows the whole head; scale=1, up=0 fits the landmarks' box into the picture as
    InverseFaceNet (Kim et al. 2018, sec. 6.1) does at 240; CoarseNet uses 200, GANFIT 256.
    Raises ParameterError for landmarks that are not finite or not a box, NotAnImageError as `check_image`.
    """
    check_image(image)
    if landmarks.shape != (68, 2) or not torch.isfinite(landmarks).all():
        raise ParameterError(f"Landmarks must be 68 finite points (68, 2); got {tuple(landmarks.shape)}.")
    low, high = landmarks.double().amin(0), landmarks.double().amax(0)
    side = round(scale * float((high - low).max()))
    if side < 2 or side > 4 * max(image.shape[1:]) or size < 1:
        raise ParameterError(
            f"A crop of {side} px to {size} px cannot be made; check the landmarks and sizes."
        )
    centre = (low + high) / 2 - torch.tensor([0.0, up * side])
    left, top = (round(v) for v in (centre - side / 2).tolist())
    height, width = image.shape[1:]
    rows, columns = torch.arange(top, top + side), torch.arange(left, left + side)
    window = image[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
    picture = resize(window[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
    factor = size / side
    matrix = torch.tensor(
        [[factor, 0, -left * factor], [0, factor, -top * factor], [0, 0, 1]], dtype=torch.float64
    )
    centres = (torch.arange(size) + 0.5) / factor
    inside_y, inside_x = (centres + top), (centres + left)
    inside = ((inside_y > 0) & (inside_y < height))[:, None] & ((inside_x > 0) & (inside_x < width))
    moved = landmarks @ matrix[:2, :2].to(landmarks) + matrix[:2, 2].to(landmarks)
    confidence = landmark_confidence(landmarks, height, width)
    missing = share_outside(landmarks, height, width)
    return Crop(picture, moved, inside[None].to(image.device), matrix, confidence, missing)


def landmark_confidence(landmarks: Tensor, height: int, width: int) -> Tensor:
    """(68,) in [0, 1]: how far landmarks (68, 2) px can be trusted in a photo of height×width px.

    0 on the photo's border and outside, 1 from `BORDER` of the face's size inwards: what lies at the border
    a detector guesses from the visible part.
    """
    limits = landmarks.new_tensor([width, height])
    depth = torch.minimum(landmarks, limits - landmarks).amin(-1)
    size = (landmarks.amax(0) - landmarks.amin(0)).max()
    return (depth / (BORDER * size)).clamp(0, 1)


def share_outside(landmarks: Tensor, height: int, width: int) -> float:
    """The share, in [0, 1], of the box of landmarks (68, 2) px beyond a photo of height×width px."""
    low, high = landmarks.double().amin(0), landmarks.double().amax(0)
    limits = low.new_tensor([width, height])
    inside = (torch.minimum(high, limits) - low.clamp(min=0)).clamp(min=0)
    return float(1 - (inside / (high - low).clamp(min=1e-6)).clamp(max=1).prod())


def landmark_mask(landmarks: Tensor, height: int, width: int, mouth_hole: bool = False) -> Tensor:
    """(1, H, W) bool: the convex hull of 68 landmarks (68, 2) px; `mouth_hole` takes out the inside of 60–67.

    With the hole it is InverseFaceNet's input mask (Kim et al. 2018, sec. 6.1). Raises ParameterError.
    """
    if landmarks.shape != (68, 2) or not torch.isfinite(landmarks).all():
        raise ParameterError(f"Landmarks must be 68 finite points (68, 2); got {tuple(landmarks.shape)}.")
    mask = polygon(landmarks, height, width)
    if mouth_hole:
        mask &= ~polygon(landmarks[60:68], height, width, convex=False)
    return mask


def polygon(points: Tensor, height: int, width: int, convex: bool = True) -> Tensor:
    """(1, H, W) bool: inside the convex hull of points (N, 2) px, or inside the polygon that they make."""
    corners = points.detach().cpu().double().numpy()[:, ::-1] - 0.5  # (row, column), pixel centres whole
    if convex:
        corners = corners[ConvexHull(corners).vertices]
    return torch.from_numpy(polygon2mask((height, width), corners))[None].to(points.device)
