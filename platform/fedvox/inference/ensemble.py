"""One or several trained networks that segment the same structures.

Members with the same recipe (the folds of a cross-validation) see the same windows, and their logits are averaged.
Members with another grid are averaged as probabilities in the original grid; see `labels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedvox import storage
from fedvox.errors import CheckpointError, ConfigError
from fedvox.inference.recipe import Recipe
from fedvox.training.release import ModelInfo, load_release, read_info


@dataclass(frozen=True)
class Member:
    """A trained network.

    Attributes:
        name: for people; its folder.
        network: in evaluation mode.
        recipe: how it wants its input.
        divisor: what each edge of a patch must be a multiple of.
        sha256: of its weights.
    """

    name: str
    network: nn.Module
    recipe: Recipe
    divisor: tuple[int, int, int] = (1, 1, 1)
    sha256: str = ""


@dataclass(frozen=True)
class Ensemble:
    """Networks that are used together.

    Attributes:
        members: at least one.
        structures: names of the output channels, background first.
        channel_names: input channels.
        modality: "CT", "MR", …; empty where it is not known.
    """

    members: tuple[Member, ...]
    structures: tuple[str, ...]
    channel_names: tuple[str, ...]
    modality: str = ""

    def __post_init__(self) -> None:
        """Refuses an empty ensemble and patches that do not fit their networks."""
        if not self.members:
            raise ConfigError("no model was named", "Name at least one: --model RUN/final.")
        for member in self.members:
            patch, divisor = member.recipe.patch_size, member.divisor
            if any(n % d for n, d in zip(patch, divisor, strict=True)):
                fitting = tuple(max(d, round(n / d) * d) for n, d in zip(patch, divisor, strict=True))
                raise ConfigError(
                    f"{member.name}: patch_size {patch} is not divisible by {divisor}, as its network needs",
                    f"Give one that is: --patch-size {' '.join(map(str, fitting))}",
                )

    @property
    def groups(self) -> tuple[tuple[Member, ...], ...]:
        """Members by recipe, in the order of their first member."""
        recipes = list(dict.fromkeys(member.recipe for member in self.members))
        return tuple(tuple(m for m in self.members if m.recipe == recipe) for recipe in recipes)

    def to(self, device: torch.device) -> Ensemble:
        """Moves the networks; returns itself."""
        for member in self.members:
            member.network.to(device)
        return self


def release_folder(uri: str) -> str:
    """The released model that a path names: itself, or `final` of a run directory.

    Raises:
        CheckpointError: neither holds one.
    """
    folder = storage.locate(uri)
    for candidate in (folder, folder.child("final")):
        if storage.exists(candidate.child("model.json")):
            return candidate.uri
    raise CheckpointError(
        f"{uri} holds no released model (neither model.json nor final/model.json)",
        "Name a finished run or its `final` folder.",
    )


def read_infos(uris: Sequence[str]) -> tuple[ModelInfo, ...]:
    """The descriptions of models that are to be used together, without their weights.

    Raises:
        CheckpointError: one is missing or not readable.
        ConfigError: no model, or they do not fit together; what differs is named.
    """
    if not uris:
        raise ConfigError("no model was named", "Name at least one: --model RUN/final.")
    infos = tuple(read_info(storage.locate(release_folder(uri))) for uri in uris)
    for uri, info in zip(uris[1:], infos[1:], strict=True):
        for what in ("structures", "channel_names"):
            ours, first = getattr(info, what), getattr(infos[0], what)
            if ours != first:
                raise ConfigError(
                    f"{what} of {uri} differ from those of {uris[0]}: {_difference(first, ours)}",
                    "Only models of the same structures and channels can be averaged; predict with each by itself.",
                )
    return infos


def load_ensemble(uris: Sequence[str], *, patch_size: tuple[int, int, int] | None = None) -> Ensemble:
    """Loads released models that are to be used together, on the CPU.

    Args:
        uris: run directories or their `final` folders; local or `s3://`.
        patch_size: (D, H, W) of the windows; None for those of training.

    Raises:
        CheckpointError: a model is missing, damaged or unreadable.
        ConfigError: they do not fit together, or the patch does not fit one.
    """
    infos = read_infos(uris)
    members = []
    for uri in uris:
        network, info = load_release(release_folder(uri))
        recipe = Recipe.of(info, patch_size=patch_size)
        divisor = getattr(network, "divisor", (1, 1, 1))
        members.append(Member(uri, network, recipe, divisor, str(info.provenance.get("sha256", ""))))
    return Ensemble(tuple(members), infos[0].structures, infos[0].channel_names, infos[0].modality)


def _difference(first: tuple[str, ...], other: tuple[str, ...]) -> str:
    if len(first) != len(other):
        return f"{len(first)} and {len(other)}"
    number, (a, b) = next(
        (i, pair) for i, pair in enumerate(zip(first, other, strict=True)) if pair[0] != pair[1]
    )
    return f"number {number} is {a!r} and {b!r}"
