"""One color a structure, the same on the review page, in exported color tables and in pictures."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

from fedvox.data.contact_sheet import COLORS

_GOLDEN = 0.61803398875  # of a turn: consecutive hues lie far apart, however many there are


def structure_colors(count: int) -> npt.NDArray[np.uint8]:
    """Colors of structures.

    Args:
        count: K, background included.

    Returns:
        (K, 3) uint8 RGB; background is black. The first are the palette that color-blind people can tell apart.
    """
    colors = np.zeros((count, 3), dtype=np.uint8)
    for index in range(1, count):
        if index <= len(COLORS):
            colors[index] = COLORS[index - 1]
        else:
            beyond = index - len(COLORS)
            rgb = colorsys.hsv_to_rgb(
                beyond * _GOLDEN % 1, (0.55, 0.85)[beyond % 2], (1.0, 0.75)[beyond // 2 % 2]
            )
            colors[index] = [round(255 * value) for value in rgb]
    return colors
