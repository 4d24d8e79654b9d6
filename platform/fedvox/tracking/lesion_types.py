"""Kinds of lesions that can be painted into a scan, apart from each other in look and in shape.

Levels are in units of healthy tissue: 1 is as bright as the tissue around, 1.6 enhances, 0.3 is dark. What is learned
from some kinds can be tried on the others, which the learner has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from fedvox.errors import ConfigError

FloatVolume = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LesionType:
    """Look and shape of one kind.

    Args:
        core: level of the middle.
        rim: level of the outer part.
        rim_share: share of the depth that belongs to the rim.
        texture: standard deviation of a patchy pattern.
        irregular: how far the outline strays from a ball, as a share of the distance to the middle.
        opacity: how much of the tissue it replaces.
        soft_mm: width of the transition at its border.
    """

    core: float
    rim: float
    rim_share: float = 0.4
    texture: float = 0.03
    irregular: float = 0.25
    opacity: float = 1.0
    soft_mm: float = 0.7


LESION_TYPES: dict[str, LesionType] = {
    "enhancing": LesionType(core=1.6, rim=1.6),
    "hypointense": LesionType(core=0.3, rim=0.35),
    "ring": LesionType(core=0.35, rim=1.6, rim_share=0.45),
    "infiltrative": LesionType(core=0.45, rim=0.55, texture=0.08, irregular=0.6, opacity=0.75, soft_mm=2.0),
    "haemorrhagic": LesionType(core=1.2, rim=0.8, texture=0.45, irregular=0.4),
    "cystic": LesionType(core=0.12, rim=1.25, rim_share=0.2, texture=0.01, irregular=0.1),
}


def lesion_type(name: str) -> LesionType:
    """A kind by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in LESION_TYPES:
        raise ConfigError(f"there is no lesion type {name!r}", f"Known: {', '.join(LESION_TYPES)}.")
    return LESION_TYPES[name]


def paint(
    image: FloatVolume,
    mask: npt.NDArray[np.bool_],
    depth_mm: npt.NDArray[np.floating],
    kind: LesionType,
    spacing_mm: tuple[float, float, float],
    level: float,
    rng: np.random.Generator,
) -> FloatVolume:
    """An image with a lesion painted in.

    Args:
        image: (D, H, W).
        mask: where the lesion is.
        depth_mm: distance to its outside, 0 there.
        kind: what it looks like.
        spacing_mm: (D, H, W).
        level: of healthy tissue.
        rng: of its texture.
    """
    depth = depth_mm / max(float(depth_mm.max()), 1e-6)
    rim = 1 / (1 + np.exp((depth - kind.rim_share) / 0.06))
    patches = gaussian_filter(rng.standard_normal(mask.shape), [1.5 / s for s in spacing_mm])
    patches /= max(float(patches.std()), 1e-6)
    painted = level * (kind.core + (kind.rim - kind.core) * rim + kind.texture * patches)
    opacity = kind.opacity * gaussian_filter(
        mask.astype(np.float32), [kind.soft_mm / 2 / s for s in spacing_mm]
    )
    return np.asarray(image + opacity * (np.maximum(painted, 0) - image), dtype=np.float32)
