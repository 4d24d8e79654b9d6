"""A registered segmentation backbone as the body of the velocity network, with its pretrained weights if wanted.

The time embedding scales and shifts (FiLM) what leaves the stem and what leaves each level of the encoder. Constant
input channels would not do: the backbone's instance normalisation removes them. The head is new and starts at zero.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedvox.errors import ConfigError
from fedvox.forecasting.config import NetworkSection
from fedvox.forecasting.unet import modulate
from fedvox.models.registry import build_model


class BackboneBody(nn.Module):
    """From `(B, inputs, D, H, W)` and an embedding `(B, E)` to `(B, outputs, D, H, W)`, all zero at first.

    Args:
        network: names the backbone; E is its `embedding`.
        inputs: channels.
        outputs: channels.

    Raises:
        ConfigError: there is no such backbone, or it has no such option.
    """

    def __init__(self, network: NetworkSection, inputs: int, outputs: int) -> None:
        super().__init__()
        assert network.backbone is not None
        self.backbone = build_model(
            network.backbone, in_channels=inputs, classes=outputs, deep_supervision=False, **network.options
        )
        for parameter in self.backbone.heads[0].parameters():
            nn.init.zeros_(parameter)
        stem, levels = self._widths(inputs)
        self.stem_film = _film(network.embedding, stem)
        self.level_films = nn.ModuleList(_film(network.embedding, width) for width in levels)

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What each edge (D, H, W) of a volume must be a multiple of."""
        return self.backbone.divisor

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The output, `(B, outputs, D, H, W)`."""
        net = self.backbone
        encoded = net.encoder(modulate(net.stem(x), self.stem_film(embedding)))
        levels = encoded if isinstance(encoded, list) else [encoded]
        levels = [modulate(h, film(embedding)) for h, film in zip(levels, self.level_films, strict=True)]
        decoded = net.decoder(levels if isinstance(encoded, list) else levels[0])
        return cast(Tensor, net.heads[0](decoded[0] if isinstance(decoded, list) else decoded))

    @torch.no_grad()
    def _widths(self, inputs: int) -> tuple[int, list[int]]:
        """Channels that leave the stem, and each level of the encoder."""
        net = self.backbone
        edges = getattr(net.config, "patch", None) or tuple(2 * d for d in net.divisor)
        was_training = net.training
        net.eval()
        stem = net.stem(torch.zeros(1, inputs, *edges))
        encoded = net.encoder(stem)
        net.train(was_training)
        levels = encoded if isinstance(encoded, list) else [encoded]
        if any(level.ndim != 5 for level in levels):
            raise ConfigError(
                f"the encoder of {type(net).__name__} does not give volumes of features",
                "Choose a convolutional backbone, or Primus.",
            )
        return int(stem.shape[1]), [int(level.shape[1]) for level in levels]


def _film(embedding: int, width: int) -> nn.Linear:
    layer = nn.Linear(embedding, 2 * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
