"""A trained network as a segmenter: any registered backbone with the prompts as further input channels.

    network = promptable("resenc-unet-m")                      # fresh
    load_image_weights(network, read_pretrained("runs/mednext/final"))
    segment = load_segmenter("runs/lesions/final")             # trained: a `Segmenter` like the classical ones

Weights of a network that knows no prompts are taken over with the stem widened: the image's kernels stay as they were
and the prompts' begin at zero, so that at first the network sees of an image what it saw before, whatever is marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox import storage
from fedvox.errors import CheckpointError
from fedvox.models.backbone import Backbone
from fedvox.models.registry import build_model
from fedvox.models.transfer import LoadReport, inflate_channels, load_pretrained
from fedvox.tracking.patches import SEEN, Patch, PatchPlan
from fedvox.tracking.prompts import PromptEncoding
from fedvox.tracking.segmenters import Request
from fedvox.training.pretrained import Pretrained
from fedvox.training.release import ModelInfo, load_release, write_release

STRUCTURES = ("background", "lesion")
_ENCODING = "prompt_encoding"  # key in the release's provenance


def promptable(name: str, *, image_channels: int = 1, **options: object) -> Backbone:
    """A fresh network: image and prompt channels to background and lesion. At first it adds nothing to the prior.

    Args:
        name: see `fedvox.models.registry.list_models`.
        image_channels: of the image.
        options: of the backbone.
    """
    network = build_model(name, in_channels=image_channels + len(SEEN), classes=len(STRUCTURES), **options)  # type: ignore[arg-type]  # deep_supervision is one of the options
    for parameter in network.heads.parameters():
        nn.init.zeros_(parameter)
    return network


@torch.no_grad()
def load_image_weights(network: Backbone, pretrained: Pretrained) -> LoadReport:
    """Takes over weights of a network that knows no prompts.

    Args:
        network: of `promptable`; changed in place.
        pretrained: of `read_pretrained`; of a network with prompts, everything is taken as it is.

    Returns:
        What became of every tensor.

    Raises:
        CheckpointError: too little of the encoder fits.
    """
    report = load_pretrained(
        network,
        pretrained.tensors,
        pretrained_config=pretrained.config,
        structures=STRUCTURES,
        pretrained_structures=pretrained.structures,
    )
    images = network.config.in_channels - len(SEEN)
    state = network.state_dict()
    for name in report.names("inflated"):
        old = pretrained.tensors[name]
        kernels = old if old.shape[1] == images else inflate_channels(old, images)
        state[name][:, :images] = kernels.to(state[name])
        state[name][:, images:] = 0
    network.load_state_dict(state)
    return report


def with_prior(
    outputs: Tensor | Sequence[Tensor], seen: Tensor, encoding: PromptEncoding
) -> Tensor | list[Tensor]:
    """What a network says, added to what the random walker says.

    Args:
        outputs: logits (B, 2, D, H, W), or those of all resolutions under deep supervision.
        seen: (B, 9, D, H, W), what the network saw.
        encoding: knows the prior's weight.

    Returns:
        Logits of the same shapes; as they were where nothing is marked.
    """
    walker = seen[:, -1:]
    marked = (walker.amax((1, 2, 3, 4), keepdim=True) > 0).to(walker)
    prior = encoding.prior * (2 * walker - 1) * marked
    if isinstance(outputs, Tensor):
        return torch.cat([outputs[:, :1], outputs[:, 1:] + prior.to(outputs)], dim=1)
    sized = [F.interpolate(prior, size=x.shape[2:], mode="trilinear", align_corners=False) for x in outputs]
    return [torch.cat([x[:, :1], x[:, 1:] + p.to(x)], dim=1) for x, p in zip(outputs, sized, strict=True)]


def lesion_probability(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """(B, 1, D, H, W) at full resolution, from logits of `with_prior`."""
    full = outputs if isinstance(outputs, Tensor) else outputs[0]
    return full.float().softmax(1)[:, 1:]


@dataclass(frozen=True, eq=False)
class NetworkSegmenter:
    """A `Segmenter` that asks a network.

    Args:
        network: of `promptable`, in evaluation mode on `device`.
        plan: patches as in training.
        device: where it runs.
        mirror: ask eight times, mirrored along all axes, and take the mean.
    """

    network: nn.Module
    plan: PatchPlan
    device: torch.device | str = "cpu"
    mirror: bool = True

    @torch.inference_mode()
    def __call__(self, request: Request) -> npt.NDArray[np.bool_]:
        """The lesion's mask, bool (D, H, W)."""
        patch = Patch.around(request.prompts, request.image.shape, request.spacing_mm, self.plan)
        seen = torch.from_numpy(patch.seen(request.image, request.prompts)).to(self.device)[None]
        flips = list(product((False, True), repeat=3)) if self.mirror else [(False, False, False)]
        axes = [[2 + a for a, flipped in enumerate(flip) if flipped] for flip in flips]
        views = torch.cat([seen.flip(a) for a in axes])
        said = lesion_probability(with_prior(self.network(views), views, self.plan.encoding))
        mean = torch.stack(
            [p.flip([a - 1 for a in flipped]) for p, flipped in zip(said, axes, strict=True)]
        ).mean(0)
        return patch.whole(mean[0].cpu().numpy())


def write_segmenter(
    network: Backbone, plan: PatchPlan, folder: str, *, model: str, options: dict[str, Any], **provenance: Any
) -> None:
    """Writes a trained network as a release (see `fedvox.training.release`).

    Args:
        network: of `promptable`, with one image channel.
        plan: patches that it was trained with.
        folder: where; local or `s3://`.
        model: name of the backbone.
        options: further arguments of `promptable`.
        provenance: what is to be known of the training.
    """
    info = ModelInfo(
        name=model,
        options={"deep_supervision": network.config.deep_supervision, **options},
        structures=STRUCTURES,
        channel_names=("image", *SEEN),
        patch_size=plan.size,
        spacing_mm=plan.spacing_mm,
        normalization="zscore",
        intensity=[],
        provenance={**provenance, _ENCODING: asdict(plan.encoding)},
    )
    write_release(network, info, storage.locate(folder))


def load_segmenter(uri: str, *, device: torch.device | str = "cpu") -> NetworkSegmenter:
    """A trained network from its release.

    Args:
        uri: of the folder.
        device: where it shall run.

    Raises:
        CheckpointError: there is no release, it is damaged, or it knows no prompts.
    """
    network, info = load_release(uri)
    if info.channel_names[1:] != SEEN or _ENCODING not in info.provenance:
        raise CheckpointError(
            f"{uri} is a model with the channels {', '.join(info.channel_names)}, not one that takes prompts",
            "Name a model that was trained to segment marked lesions.",
        )
    plan = PatchPlan(info.patch_size, info.spacing_mm, PromptEncoding(**info.provenance[_ENCODING]))
    return NetworkSegmenter(network.to(device).eval(), plan, device)
