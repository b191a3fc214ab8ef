"""Fit the mixtures of facelab/photos/skin.py: how surely is a pixel of a face skin, by its colour?

    python data_scripts/train_skin_mixtures.py FOLDER [--components 5] [--seed 0]

FOLDER holds photographs NAME.jpg with class masks NAME.png as CelebAMask-HQ has them (1 skin, 2 nose, 3
glasses, 4 and 5 eyes, 6 and 7 brows, 10 mouth, 11 and 12 lips, 13 hair, 14 hat). Skin are 1 and 2, less the
highlights, whose colour is the light's; what else is seen in and around a face is the other class. A fifth of
the photographs is kept apart: the errors printed, and written into the file, are on those, by the lightness
of the skin. Only the mixtures' numbers are kept, no pixel. Writes facelab/data/skin_mixtures.json.
"""

import argparse
import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.mixture import GaussianMixture
from torch import Tensor

from facelab.photos import load_photo
from facelab.photos.skin import LUMINANCE, SKIN_MODEL, Mixture, SkinModel, as_file, skin_features
from facelab.rendering.colour import srgb_to_linear
from facelab.support.errors import PhotoNotFoundError
from facelab.support.files import write_whole

SKIN, OTHER = (1, 2), (3, 4, 5, 6, 7, 10, 13, 14)
FACE = (1, 2, 3, 4, 5, 6, 7, 10, 11, 12)
EACH = 400  # pixels of a photograph and a class
HIGHLIGHT = 0.9  # logarithm of luminance over the face's median, from which on skin is a highlight
TONES = ("darker", "middle", "lighter")


@dataclass(frozen=True)
class Parsed:
    """A photograph whose classes are known."""

    features: Tensor  # (3, H, W), see `skin_features`
    skin: Tensor  # (H, W) bool
    other: Tensor  # (H, W) bool
    luminance: float  # median over the skin, linear


def read(folder: Path) -> list[Parsed]:
    """Every pair with enough of both classes. Raises PhotoNotFoundError if they are fewer than ten."""
    pairs = []
    for path in sorted(folder.glob("*.jpg")):
        mask = path.with_suffix(".png")
        if not mask.is_file():
            continue
        image = load_photo(path)
        with Image.open(mask) as opened:
            classes = torch.from_numpy(np.array(opened))
        skin, other, face = (torch.isin(classes, torch.tensor(names)) for names in (SKIN, OTHER, FACE))
        if skin.sum() < 1000 or other.sum() < 100:
            continue
        weights = image.new_tensor(LUMINANCE)[:, None, None]
        luminance = (srgb_to_linear(image) * weights).sum(0)
        features = skin_features(image, face[None])
        pairs.append(Parsed(features, skin, other, float(luminance[skin].median())))
    if len(pairs) < 10:
        raise PhotoNotFoundError(f"'{folder}' holds {len(pairs)} photographs with masks; 10 are needed.")
    return pairs


def pixels(pairs: list[Parsed], rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (N, 3) of skin and of other pixels, as many of each photograph."""
    parts: tuple[list, list] = ([], [])
    for pair in pairs:
        matt = pair.skin & (pair.features[2] < HIGHLIGHT)
        for kept, chosen in zip(parts, (matt, pair.other | (pair.skin & ~matt))):
            rows = pair.features[:, chosen].T.numpy()
            kept.append(rows[rng.permutation(len(rows))[:EACH]])
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def fitted(points: NDArray[np.float32], components: int, seed: int) -> dict[str, list]:
    """A mixture as lists of numbers."""
    mixture = GaussianMixture(components, random_state=seed, reg_covar=1e-4).fit(points)
    return {
        "shares": np.round(mixture.weights_, 5).tolist(),
        "means": np.round(mixture.means_, 4).tolist(),
        "covariances": np.round(mixture.covariances_, 6).tolist(),
    }


def _mixture(part: dict[str, list]) -> Mixture:
    shares, means, covariances = (torch.tensor(part[key]) for key in ("shares", "means", "covariances"))
    return Mixture(shares, means, torch.linalg.inv(covariances))


def errors(model: SkinModel, pairs: list[Parsed]) -> dict[str, list[float]]:
    """By thirds of the skin's lightness: share of skin taken for something else, and the other way round."""
    order = np.argsort([pair.luminance for pair in pairs], kind="stable")
    table = {}
    for tone, rows in zip(TONES, np.array_split(order, 3)):
        missed, taken = [], []
        for pair in (pairs[row] for row in rows):
            probability = model.of_features(pair.features)[0]
            missed.append(float((probability[pair.skin] <= 0.5).float().mean()))
            taken.append(float((probability[pair.other] > 0.5).float().mean()))
        table[tone] = [round(float(np.mean(missed)), 3), round(float(np.mean(taken)), 3)]
    return table


def main() -> None:
    """Fit, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--components", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SKIN_MODEL)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    pairs = read(arguments.folder)
    apart = rng.permutation(len(pairs))
    test, train = ([pairs[k] for k in part] for part in np.split(apart, [len(pairs) // 5]))
    points = pixels(train, rng)
    skin, other = (fitted(part, arguments.components, arguments.seed) for part in points)
    model = SkinModel(_mixture(skin), _mixture(other), 0.5)
    table = errors(model, test)
    about = {
        "photographs": len(train), "apart": len(test), "seed": arguments.seed,
        "skin taken for something else, something else for skin": table,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    write_whole({arguments.out: as_file(skin, other, 0.5, about)})
    for tone, (missed, taken) in table.items():
        print(f"{tone:8} skin missed {missed:.1%}, other taken for skin {taken:.1%}")


if __name__ == "__main__":
    main()
