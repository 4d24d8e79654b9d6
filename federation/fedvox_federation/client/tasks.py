"""What is trained, and on whom: the one thing that differs between segmentation and any other use.

A `Task` is all that `take_part` knows of models and data. Another task is another class with these six members.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedvox.data.label_space import canonical_name
from fedvox.data.loader import BatchStream, LoaderConfig
from fedvox.data.sampler import SamplerConfig
from fedvox.data.store import BrickStore
from fedvox.errors import ConfigError, DataError
from fedvox.inference.sliding_window import SlidingWindow
from fedvox.training.loss import DiceCrossEntropy
from fedvox.training.validation import validate
from fedvox.training.world import World
from fedvox_federation.client.model import FederatedModel, SegmentationModel
from fedvox_federation.config import FederationConfig
from fedvox_federation.dp_sgd.training import Patient, Tensors

_LEAST_EXAMPLE = 16  # voxels along each axis of a made-up image


class Task(Protocol):
    """A model and a clinic's patients."""

    @property
    def model(self) -> FederatedModel:
        """Built as everybody builds it; trained in place."""

    @property
    def dataset(self) -> str:
        """Fingerprint of the clinic's patients, for its ledger."""

    def patients(self, round_number: int) -> Sequence[Patient]:
        """All that are trained on, each loading anew whenever it is called."""

    def loss(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Mean over the first axis of a patient's tensors."""

    def example(self) -> Tensors:
        """Made-up tensors of three different samples, for the preflight."""

    def evaluate(self) -> float:
        """The model's score on patients that are never trained on; NaN where there are none."""


@dataclass(frozen=True)
class Cohort:
    """A clinic's patients, by what becomes of them.

    Attributes:
        training: patient -> rows of the store.
        held_out: likewise; judged, and never trained on.
    """

    training: dict[str, tuple[int, ...]]
    held_out: dict[str, tuple[int, ...]]

    @property
    def fingerprint(self) -> str:
        """Of all patients, whatever becomes of them and whatever they brought."""
        names = "\0".join(sorted({*self.training, *self.held_out}))
        return f"sha256:{hashlib.sha256(names.encode()).hexdigest()}"


def patient_of(case_id: str, pattern: str | None) -> str:
    """Whose case it is.

    Raises:
        ConfigError: the pattern has no group, or does not match: two patients must never count as one, nor one as
            two.
    """
    if pattern is None:
        return case_id
    try:
        found = re.search(pattern, case_id)
    except re.error as error:
        raise ConfigError(
            f"patient_pattern {pattern!r} is no regular expression: {error}", "Such as '^(P\\d+)_'."
        ) from error
    if found is None or not found.groups():
        raise ConfigError(
            f"patient_pattern {pattern!r} finds no patient in case {case_id!r}",
            "Its first group must match the patient in every case's id.",
        )
    return str(found[1])


def split_cohort(
    store: BrickStore, rows: Sequence[int], *, pattern: str | None, held_out_fraction: float
) -> Cohort:
    """Deal a clinic's labelled patients to training and judging, by a hash of their names.

    Raises:
        DataError: nobody is left to train on.
    """
    by_patient: dict[str, list[int]] = {}
    for row in rows:
        if store.annotated(row)[1:].any():
            by_patient.setdefault(patient_of(store.case_ids[row], pattern), []).append(row)
    order = sorted(by_patient, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    count = math.ceil(held_out_fraction * len(order)) if len(order) > 1 else 0
    if count >= len(order):
        raise DataError(
            f"{store.location.uri}: no labelled patient is left to train on",
            "Ingest labelled cases, or lower held_out_fraction.",
        )
    rows_of = {name: tuple(by_patient[name]) for name in order}
    return Cohort(
        training={name: rows_of[name] for name in sorted(order[count:])},
        held_out={name: rows_of[name] for name in sorted(order[:count])},
    )


class SegmentationTask:
    """Voxel-wise segmentation on the patients of a brick store.

    Args:
        config: of the federation.
        model: as `fedvox_federation.client.model.build` makes it.
        store: the clinic's.
        cohort: rows of it.
        device: to train on.

    Raises:
        DataError: the store's channels, structures or normalisation are not the model's.
        ConfigError: the patch does not fit the network.
    """

    def __init__(
        self,
        config: FederationConfig,
        model: SegmentationModel,
        store: BrickStore,
        cohort: Cohort,
        device: torch.device,
    ) -> None:
        self._config = config.task
        self._round = config.training
        self._seed = config.seed
        self._built = model
        self._cohort = cohort
        self._device = device
        self._store = _with_public_statistics(store, model)
        self._criterion = DiceCrossEntropy()  # per sample: Dice over a batch would mix patients
        check_store(store, model)
        model.network.to(device)

    @property
    def model(self) -> FederatedModel:
        """See `Task`."""
        return self._built.federated

    @property
    def dataset(self) -> str:
        """See `Task`."""
        return self._cohort.fingerprint

    def patients(self, round_number: int) -> list[Patient]:
        """See `Task`."""
        first = (round_number - 1) * self._round.steps  # a patient comes at most once a step
        return [self._patient(name, rows, first) for name, rows in self._cohort.training.items()]

    def loss(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Cross-entropy and Dice of image (b, C, D, H, W), label (b, 1, D, H, W), annotated (b, K)."""
        image, label, annotated = (tensor.to(self._device) for tensor in tensors)
        loss: Tensor = self._criterion(model(image), label, annotated)
        return loss

    def example(self) -> Tensors:
        """See `Task`. Small where the network takes any size, since the preflight asks only what samples share."""
        patch, divisor = self._built.patch_size, self._built.network.divisor
        if not hasattr(self._built.network.config, "patch_size"):
            least = [d * max(2, math.ceil(_LEAST_EXAMPLE / d)) for d in divisor]
            patch = (min(patch[0], least[0]), min(patch[1], least[1]), min(patch[2], least[2]))
        classes = len(self._built.structures)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(3, self._built.channels, *patch, generator=generator)
        label = torch.randint(0, classes, (3, 1, *patch), generator=generator)
        label[0] = 0
        return image, label, torch.ones(3, classes, dtype=torch.bool)

    def evaluate(self) -> float:
        """Mean foreground Dice of the held-out patients' whole volumes."""
        rows = [row for rows in self._cohort.held_out.values() for row in rows]
        if not rows:
            return math.nan
        window = SlidingWindow(self._built.patch_size, self._config.overlap, mirror=False)
        world = World(device=self._device)
        return validate(self._built.network, self._store, rows, window, world).mean_foreground

    def _patient(self, name: str, rows: tuple[int, ...], first: int) -> Patient:
        """Other patches at every visit, none of them seen before."""
        digest = hashlib.blake2b(f"{self._seed}\0{name}".encode(), digest_size=7).digest()
        sampler = SamplerConfig(
            seed=int.from_bytes(digest),
            patch_size=self._built.patch_size,
            foreground_fraction=self._config.foreground_fraction,
        )
        loader = LoaderConfig(global_batch_size=self._config.patches_per_patient, threads=0)
        visits = itertools.count(first)

        def load() -> Tensors:
            with BatchStream(
                self._store,
                sampler,
                self._config.augment,
                loader,
                rows=rows,
                start_step=next(visits),
                num_steps=1,
            ) as stream:
                batch = next(stream)
            return batch.image, batch.label, batch.annotated

        return load


def _with_public_statistics(store: BrickStore, model: SegmentationModel) -> BrickStore:
    """A CT is normalised with the pretraining's statistics: the clinic's own would tell of all its patients."""
    if store.meta.normalization != "ct":
        return store
    if not model.intensity:
        raise DataError(
            f"{store.location.uri} is normalised with statistics of all its cases (ct), and the weights bring none",
            "Use a release (a run's `final` folder), which holds the pretraining's statistics.",
        )
    store.meta = dataclasses.replace(store.meta, intensity=model.intensity)
    return store


def check_store(store: BrickStore, model: SegmentationModel) -> None:
    """Refuse patients that the model is not made for, and a patch that it cannot take.

    Raises:
        DataError: the store's channels, structures or normalisation are not the model's.
        ConfigError: the patch does not fit the network.
    """
    model.network.check_patch(torch.zeros(1, model.channels, *model.patch_size))
    meta, info = store.meta, model.info
    pairs = {
        "channels": (len(meta.channel_names), model.channels),
        "structures": (_canonical(meta.structures), _canonical(model.structures)),
    }
    if info is not None:
        pairs["normalization"] = (meta.normalization, info.normalization)
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise DataError(
                f"{store.location.uri}: {name} {found!r}, the federation has {expected!r}",
                "Ingest with the study's label space and modality.",
            )


def _canonical(names: Sequence[str]) -> tuple[str, ...]:
    """In one spelling, as the ingest writes them."""
    return tuple(canonical_name(name) for name in names)
