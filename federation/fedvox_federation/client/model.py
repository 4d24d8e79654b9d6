"""The network that server and clinics share, and which of its parameters travel.

Everybody builds it from the same pretrained weights and the same configuration. Only what is trained is sent; the
rest is known, and its hash in every order shows that it is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fedvox.data.intensity import ChannelIntensity
from fedvox.errors import CheckpointError, ConfigError
from fedvox.inference.recipe import Recipe
from fedvox.models.backbone import Backbone
from fedvox.models.registry import build_model
from fedvox.models.transfer import LoadReport, load_pretrained
from fedvox.training.config import Size3, expand
from fedvox.training.pretrained import Pretrained, read_pretrained
from fedvox.training.release import ModelInfo
from fedvox_federation.config import FederationConfig
from fedvox_federation.dp_sgd.local_round import hash_of
from fedvox_federation.dp_sgd.low_rank import merge_low_rank
from fedvox_federation.dp_sgd.trainable import norm_parameters, select_trainable
from fedvox_federation.protocol import Array, Arrays, BadMessage


@dataclass(frozen=True)
class FederatedModel:
    """A network and what of it travels.

    Attributes:
        network: with `requires_grad` as it is trained.
        shared: names of the parameters that are sent, in the network's order.
        local: names of trained parameters that stay in a clinic.
        base_sha256: of everything that is not sent, as it was built.
    """

    network: nn.Module
    shared: tuple[str, ...]
    local: tuple[str, ...]
    base_sha256: str

    @classmethod
    def of(
        cls, network: nn.Module, *, local: tuple[str, ...] = (), unused: tuple[str, ...] = ()
    ) -> FederatedModel:
        """From a network whose `requires_grad` is set.

        Args:
            network: any.
            local: trained parameters that are not sent.
            unused: prefixes of names of what takes no part, and may differ.
        """
        trained = [name for name, p in network.named_parameters() if p.requires_grad]
        shared = tuple(name for name in trained if name not in local)
        base = {
            name: value
            for name, value in network.state_dict().items()
            if name not in shared and not name.startswith(unused)
        }
        return cls(network, shared, tuple(name for name in trained if name in local), hash_of(base))

    def arrays(self) -> Arrays:
        """The shared parameters now."""
        return self._as_arrays(self.shared)

    def local_arrays(self) -> Arrays:
        """The parameters that stay, now."""
        return self._as_arrays(self.local)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Put shared parameters into the network.

        Raises:
            BadMessage: other names, shapes or types than the network's, or a number that is not finite.
        """
        self._load(arrays, self.shared)

    def load_local(self, arrays: Mapping[str, Array]) -> None:
        """Put a clinic's own parameters into the network; raises as `load` does."""
        self._load(arrays, self.local)

    def _as_arrays(self, names: tuple[str, ...]) -> Arrays:
        parameters = dict(self.network.named_parameters())
        return {name: parameters[name].detach().float().cpu().numpy().copy() for name in names}

    def check(self, arrays: Mapping[str, Array]) -> None:
        """Whether arrays are such as the shared parameters are; raises as `load` does."""
        self._check(arrays, self.shared)

    def _check(self, arrays: Mapping[str, Array], names: tuple[str, ...]) -> None:
        if set(arrays) != set(names):
            raise BadMessage(f"{len(arrays)} arrays, expected {len(names)}, or other names")
        parameters = dict(self.network.named_parameters())
        for name in names:
            value, parameter = arrays[name], parameters[name]
            if value.dtype != np.float32 or value.shape != tuple(parameter.shape):
                raise BadMessage(
                    f"{name}: {value.dtype}{value.shape}, expected float32{tuple(parameter.shape)}"
                )
            if not np.isfinite(value).all():
                raise BadMessage(f"{name}: not finite")

    @torch.no_grad()
    def _load(self, arrays: Mapping[str, Array], names: tuple[str, ...]) -> None:
        self._check(arrays, names)
        parameters = dict(self.network.named_parameters())
        for name in names:
            parameters[name].copy_(torch.from_numpy(np.array(arrays[name])))


@dataclass(frozen=True)
class SegmentationModel:
    """A federated backbone, and what its images must be.

    Attributes:
        federated: see `FederatedModel`.
        name: of the backbone.
        structures: names of the output channels, background first.
        patch_size: (D, H, W).
        channels: image channels.
        intensity: public statistics for the `ct` normalisation; empty where the weights do not say.
        info: the release that the weights come from, if they are one.
        report: what became of every tensor.
    """

    federated: FederatedModel
    name: str
    structures: tuple[str, ...]
    patch_size: Size3
    channels: int
    intensity: tuple[ChannelIntensity, ...]
    info: ModelInfo | None
    report: LoadReport

    @property
    def network(self) -> Backbone:
        """The backbone."""
        return cast(Backbone, self.federated.network)

    def merged(self) -> Backbone:
        """The ordinary network, for a release: low-rank adapters folded into their layers, in place."""
        merge_low_rank(self.network)
        return self.network


def build(config: FederationConfig, *, pretrained: str | None = None) -> SegmentationModel:
    """The network as everybody builds it.

    Args:
        config: of the federation.
        pretrained: a clinic's own copy of the weights; None takes the configuration's.

    Raises:
        CheckpointError: the weights cannot be read, or do not fit.
        ConfigError: neither configuration nor weights say which structures or patch, or a part that is never
            trained would start anew.
    """
    # The seed is that of heads that start anew and of adapters, never of noise.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        source = read_pretrained(expand(pretrained or config.pretrained))
        structures, patch = _settled(config, source)
        channels = config.task.channels or source.config.in_channels
        network = _network(source, channels, structures, patch)
        report = _fill(network, source, structures)
        select_trainable(network, config.training.scope, rank=config.training.lora_rank)
    _check_frozen(network, report, config)
    local = norm_parameters(network) if config.training.local_norms else ()
    federated = FederatedModel.of(network, local=local, unused=_coarse_heads(network))
    intensity = Recipe.of(source.info).intensity if source.info is not None else ()
    return SegmentationModel(
        federated, source.model, structures, patch, channels, intensity, source.info, report
    )


def _settled(config: FederationConfig, source: Pretrained) -> tuple[tuple[str, ...], Size3]:
    """Structures and patch, of the configuration or else of the weights."""
    structures = config.task.structures or source.structures
    patch = config.task.patch_size or source.patch_size
    if structures is None or patch is None:
        what = "structures" if structures is None else "patch_size"
        raise ConfigError(f"{source.uri} does not say {what}", f"Set task.{what}.")
    return structures, patch


def _network(source: Pretrained, channels: int, structures: tuple[str, ...], patch: Size3) -> Backbone:
    options: dict[str, Any] = dict(source.options)
    if "patch_size" in options:
        options["patch_size"] = patch
    return build_model(
        source.model, in_channels=channels, classes=len(structures), deep_supervision=False, **options
    )


def _fill(network: Backbone, source: Pretrained, structures: tuple[str, ...]) -> LoadReport:
    by_name = source.structures is not None
    try:
        return load_pretrained(
            network,
            source.tensors,
            pretrained_config=source.config,
            structures=structures if by_name else None,
            pretrained_structures=source.structures if by_name else None,
        )
    except CheckpointError as error:
        raise CheckpointError(f"pretrained: {source.uri}: {error.message}", error.remedy) from error


def _coarse_heads(network: Backbone) -> tuple[str, ...]:
    """Heads of coarse levels take no part without deep supervision."""
    return tuple(f"heads.{level}." for level in range(1, len(network.heads)))


def _check_frozen(network: Backbone, report: LoadReport, config: FederationConfig) -> None:
    """Refuses to keep random weights for good."""
    frozen = {n.replace(".base.", ".") for n, p in network.named_parameters() if not p.requires_grad}
    unused = _coarse_heads(network)
    new = (entry for entry in report.entries if entry.action == "new")
    random = [entry for entry in new if entry.name in frozen and not entry.name.startswith(unused)]
    if random:
        listed = ", ".join(f"{entry.name} ({entry.note})" for entry in random[:3])
        raise ConfigError(
            f"training.scope {config.training.scope} never trains {len(random)} tensors that would start anew: "
            f"{listed}",
            "Use weights that fit, or training.scope=full.",
        )
