"""Who proposes: trained models, which are run here, and masks that other tools or models have left as versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.curation.propose.confident import LabelEvidence, label_evidence
from fedvox.curation.store import Case, LabelStore, Source, Version
from fedvox.data.normalize import normalize
from fedvox.errors import ConfigError
from fedvox.inference.ensemble import Member, load_ensemble
from fedvox.inference.sliding_window import SlidingWindow, stream_logits

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ModelProposer:
    """A released model.

    Args:
        member: network and recipe.
        trained_on: cases that it has learnt the labels of; its opinion on others is worth more.
    """

    member: Member
    trained_on: frozenset[str] = frozenset()

    @property
    def source(self) -> Source:
        """As versions name it: by its run, wherever that lies; the hash tells runs of one name apart."""
        parts = [part for part in self.member.name.split("/") if part and part != "final"]
        return Source("model", parts[-1] if parts else "model", self.member.sha256)


@dataclass(frozen=True)
class Proposals:
    """What the proposers say of one case; those that were not trained on it come first.

    Args:
        masks: label maps, (M, D, H, W).
        sources: who said it.
        entropy: of the models' mean probability as a share of log K, (D, H, W); None without a model.
        evidence: for confident learning, from the models that were not trained on the case; None without one.
    """

    masks: Array
    sources: tuple[Source, ...]
    entropy: Array | None = None
    evidence: LabelEvidence | None = field(default=None, repr=False)


def load_proposers(
    uris: Sequence[str], structures: Sequence[str], trained_on: Sequence[frozenset[str]] = ()
) -> tuple[ModelProposer, ...]:
    """Loads released models.

    Args:
        uris: runs or their `final` folders.
        structures: of the collection; the models' must be the same.
        trained_on: cases that each was trained on.

    Raises:
        CheckpointError: a model is missing or damaged.
        ConfigError: its structures are others.
    """
    if not uris:
        return ()
    ensemble = load_ensemble(uris)
    if ensemble.structures != tuple(structures):
        raise ConfigError(
            f"proposers: {uris[0]} segments {', '.join(ensemble.structures)}; the collection has "
            f"{', '.join(structures)}",
            "Fine-tune it on the collection's structures, or import its masks (fedvox curate import-masks).",
        )
    seen = trained_on or [frozenset()] * len(uris)
    return tuple(ModelProposer(*pair) for pair in zip(ensemble.members, seen, strict=True))


def propose_case(
    store: LabelStore,
    case: Case,
    proposers: Sequence[ModelProposer],
    imported: Sequence[str] = (),
    *,
    overlap: float = 0.5,
    device: torch.device | str = "cpu",
) -> Proposals:
    """Runs the models on a case and gathers what others have left.

    Args:
        store: of the case.
        case: which.
        proposers: models.
        imported: names of sources whose newest version of the case is a proposal too.
        overlap: of neighbouring windows, as a share of a patch.
        device: where the networks run.

    Raises:
        ConfigError: a model wants another spacing than the image has.
    """
    given = None if case.head is None else store.read_mask(store.version(case.case_id, case.head))
    ordered = sorted(proposers, key=lambda proposer: case.case_id in proposer.trained_on)
    masks, entropy, evidence = [], None, None
    if ordered:
        fresh = sum(case.case_id not in proposer.trained_on for proposer in ordered)
        streams = [_stream(store, case, proposer.member, overlap, device) for proposer in ordered]
        labels, entropy, evidence = _read(streams, case, given, len(store.structures), fresh)
        masks.extend(labels)
    sources = [proposer.source for proposer in ordered]
    for version in _imported(store, case, imported):
        masks.append(store.read_mask(version))
        sources.append(version.source)
    if not masks:
        raise ConfigError(
            f"case {case.case_id!r} has no proposal: no model is named and no imported mask is there",
            "Name at least two proposers (proposers.models, proposers.imported).",
        )
    return Proposals(np.stack(masks), tuple(sources), entropy, evidence)


def _stream(
    store: LabelStore, case: Case, member: Member, overlap: float, device: torch.device | str
) -> Iterator[Tensor]:
    images = store.images.store
    row = images.record(store.images.rows[case.case_id])
    wanted = member.recipe.spacing_mm
    if wanted is not None and not np.allclose(wanted, case.spacing_mm, rtol=0.01):
        raise ConfigError(
            f"{member.name} wants voxels of {wanted} mm, case {case.case_id!r} has {case.spacing_mm}",
            "Ingest the images at the model's spacing, or predict with `fedvox predict` and import the masks.",
        )
    recipe = member.recipe
    meta = recipe.meta(images.meta.channel_names, images.meta.modality)
    image = torch.as_tensor(normalize(store.images.read(case.case_id), row, meta))
    window = SlidingWindow(recipe.patch_size, overlap, False)
    return stream_logits([member.network], image, window, device=device, pad_value=recipe.pad_value)


def _read(
    streams: Sequence[Iterator[Tensor]], case: Case, given: Array | None, structures: int, fresh: int
) -> tuple[list[Array], Array, LabelEvidence | None]:
    """Plane by plane, since the probabilities of a whole CT in a hundred structures do not fit into memory."""
    dtype = np.uint8 if structures <= 256 else np.uint16
    labels = [np.empty(case.shape, dtype) for _ in streams]
    entropy = np.empty(case.shape, np.float32)
    evidence: LabelEvidence | None = None
    voxel_mm3 = float(np.prod(case.spacing_mm))
    for z, planes in enumerate(zip(*streams, strict=True)):
        chances = [plane.float().softmax(0).cpu().numpy() for plane in planes]
        for label, chance in zip(labels, chances, strict=True):
            label[z] = chance.argmax(0)
        mean = np.mean(chances, axis=0)
        entropy[z] = -(mean * np.log(np.maximum(mean, 1e-12))).sum(0) / np.log(structures)
        if given is not None and fresh:
            part = label_evidence(given[z], np.mean(chances[:fresh], axis=0), voxel_mm3)
            evidence = part if evidence is None else evidence + part
    return labels, entropy, evidence


def _imported(store: LabelStore, case: Case, names: Sequence[str]) -> list[Version]:
    """The newest version of each named source."""
    if not names:
        return []
    newest = {version.source.name: version for version in store.versions(case.case_id)}
    return [newest[name] for name in names if name in newest]
