"""How far each parameter is from the output, in layers: what layer-wise learning rates go by.

    heads 0 <- decoder, finest level 1 <- … <- decoder, coarsest level <- encoder, deepest <- … <- stem

A layer is a resolution level of a U-Net's encoder or decoder, with the block that leads to it, or a block of a
transformer. Learned positions belong to the stem, and a transformer's last norm to its last block, as in BEiT
(arXiv:2106.08254).
"""

from __future__ import annotations

import re

from fedvox.errors import ConfigError
from fedvox.models.backbone import Backbone
from fedvox.models.primus import Primus

_STEM, _ENCODER, _DECODER, _HEADS = range(4)
_AFTER_ENCODER = (_ENCODER, 10**9)
_LEVEL = re.compile(r"(encoder|decoder)\.(stages|downs|ups|blocks|norms)\.(\d+)\.")


def layer_distance(model: Backbone) -> dict[str, int]:
    """The distance of every parameter from the heads.

    Args:
        model: any registered backbone.

    Returns:
        0 for the heads' parameters, 1 for those of the last layer before them, and so on, by the parameter's name.

    Raises:
        ConfigError: a parameter is in no known layer.
    """
    rises = isinstance(model, Primus)
    order = {name: _order(name, decoder_rises=rises) for name, _ in model.named_parameters()}
    deepest = max(layer for layer in order.values() if layer[0] == _ENCODER and layer != _AFTER_ENCODER)
    order = {name: deepest if layer == _AFTER_ENCODER else layer for name, layer in order.items()}
    layers = sorted(set(order.values()), reverse=True)
    distance = {layer: number for number, layer in enumerate(layers)}
    return {name: distance[layer] for name, layer in order.items()}


def _order(name: str, *, decoder_rises: bool) -> tuple[int, int]:
    """A key that rises along the way of the data: part, then layer within it."""
    part = name.partition(".")[0]
    if part == "stem" or name.startswith("encoder.position."):
        return (_STEM, 0)
    if part == "heads":
        return (_HEADS, 0)
    if name.startswith("encoder.norm."):
        return _AFTER_ENCODER
    match = _LEVEL.match(name)
    if match is None:
        raise ConfigError(
            f"{name} is in no layer that layer-wise learning rates know",
            "use another schedule for this backbone",
        )
    level = int(match[3]) + (match[2] == "downs")  # a down block belongs to the level to which it leads
    if part == "encoder":
        return (_ENCODER, level)
    # The U-Nets count their decoder's levels from full resolution, Primus along the way of the data.
    return (_DECODER, level if decoder_rises else -level)
