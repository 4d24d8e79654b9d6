"""Names and colors of the structures as other programs read them.

3D Slicer    color table (.ctbl, also read as .txt): `value name R G B A`, names without spaces
ITK-SNAP     label descriptions (.txt): `value R G B alpha visible mesh "name"`
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedvox.curation.exchange.colors import structure_colors


def slicer_color_table(structures: Sequence[str]) -> str:
    """A color table for 3D Slicer.

    Args:
        structures: K names, background first; the value of a structure is its index.
    """
    colors = structure_colors(len(structures)).tolist()
    lines = ["# Color table of the label maps beside this file", f"# {len(structures)} values"]
    for value, (name, (red, green, blue)) in enumerate(zip(structures, colors, strict=True)):
        lines.append(f"{value} {_word(name)} {red} {green} {blue} {255 if value else 0}")
    return "\n".join(lines) + "\n"


def itksnap_labels(structures: Sequence[str]) -> str:
    """A label description file for ITK-SNAP.

    Args:
        structures: see `slicer_color_table`.
    """
    colors = structure_colors(len(structures)).tolist()
    rule = "#" * 48
    lines = [
        rule,
        "# ITK-SnAP Label Description File",
        "# Fields: IDX -R- -G- -B- -A- VIS MSH LABEL",
        rule,
    ]
    for value, (name, (red, green, blue)) in enumerate(zip(structures, colors, strict=True)):
        shown = int(value > 0)
        quoted = "Clear Label" if value == 0 else name.replace('"', "'")
        lines.append(
            f'{value:5d} {red:5d} {green:4d} {blue:4d} {shown:8.2g} {shown:2d} {shown:2d}    "{quoted}"'
        )
    return "\n".join(lines) + "\n"


def _word(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip())
