"""One case through propose and measure, kept in files, so that a round goes on where it stopped.

rounds/003/cases/ID.json    facts and scores; written last: the case is done
rounds/003/cases/ID.npz     evidence for confident learning
rounds/003/maps/ID.arrow    attention maps, 8 bits: disagreement, entropy, overlap
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fedvox.curation.check.measure import CaseFacts, Grid, StructureFacts, claims, measure_structure
from fedvox.curation.propose.attention import MAPS, attention
from fedvox.curation.propose.confident import LabelEvidence, confident_joint
from fedvox.curation.propose.consensus import Method, consensus
from fedvox.curation.propose.proposers import Proposals
from fedvox.curation.store import Case, LabelStore, NewVersion, Source
from fedvox.data.bricks import CaseHeader, write_case
from fedvox.errors import DataError
from fedvox.storage import Location, exists, read_bytes, write_atomic

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Examined:
    """A case that was examined.

    Args:
        facts: of its label, compared with the consensus.
        consensus_facts: structure -> volume in mm³ of the consensus.
        versions: the proposals and the consensus, with masks that are written and rows that are not.
    """

    facts: CaseFacts
    consensus_facts: Mapping[str, float]
    versions: tuple[NewVersion, ...]


def examine(
    store: LabelStore,
    case: Case,
    round: int,
    proposals: Proposals,
    *,
    method: Method = "majority",
) -> Examined:
    """Measures a case's label against its proposals; writes masks, attention maps and evidence, but no row.

    Args:
        store: of the case.
        case: with a head; without one its consensus is measured.
        round: that this belongs to.
        proposals: of the case.
        method: of the consensus.
    """
    structures = store.structures
    agreed = consensus(proposals.masks, len(structures), method)
    versions = [
        NewVersion(case.case_id, store.masks.write(case, mask), source, round=round, reason="proposal")
        for mask, source in zip(proposals.masks, proposals.sources, strict=True)
        if source.kind == "model"
    ]
    by = Source("consensus", f"{method} of {len(proposals.masks)}")
    versions.append(
        NewVersion(case.case_id, store.masks.write(case, agreed), by, round=round, reason="consensus")
    )
    maps = attention(proposals.masks, agreed, len(structures), entropy=proposals.entropy)
    grid = Grid.of(case.spacing_mm, case.affine)
    head = agreed if case.head is None else store.read_mask(store.version(case.case_id, case.head))
    facts = measure_case(store, case, head, agreed, maps.volumes(agreed, len(structures), grid.voxel_mm3))
    facts = replace(facts, proposer=proposals.sources[0].name)
    volumes = np.bincount(agreed.reshape(-1), minlength=len(structures)) * grid.voxel_mm3
    found = Examined(facts, dict(zip(structures, volumes.tolist(), strict=False)), tuple(versions))
    folder = store.round_folder(round)
    _write_maps(folder, case, maps.encoded())
    if proposals.evidence is not None:
        _write_evidence(folder, case.case_id, proposals.evidence)
    return found


def write_examined(store: LabelStore, round: int, found: Examined) -> None:
    """Marks a case as done, once its versions are in the database.

    Args:
        store: of the case.
        round: that it was examined in.
        found: see `examine`.
    """
    location = _case_file(store.round_folder(round), found.facts.case_id)
    write_atomic(location, json.dumps(_to_json(found)).encode())


def measure_case(
    store: LabelStore, case: Case, head: Array, agreed: Array, attention_mm3: Mapping[str, Array]
) -> CaseFacts:
    """The facts of a label map.

    Args:
        store: of the case.
        case: which.
        head: its label map, (D, H, W).
        agreed: the consensus, (D, H, W).
        attention_mm3: map -> (K,) mm³ within the consensus' structures.
    """
    grid = Grid.of(case.spacing_mm, case.affine)
    intensity = store.images.read(case.case_id)[0].astype(np.float32)
    names = store.structures
    claimed = claims(head, agreed, names, grid.voxel_mm3)
    facts = {}
    for index, name in enumerate(names[1:], start=1):
        found = measure_structure(head, index, grid, intensity=intensity, agreed=agreed)
        volumes = {key: float(values[index]) for key, values in attention_mm3.items()}
        facts[name] = replace(found, claimed_mm3=claimed[name], attention_mm3=volumes)
    corners = [grid.position_mm(voxel) for voxel in ((0, 0, 0), tuple(n - 1 for n in case.shape))]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return CaseFacts(
        case.case_id,
        case.head or 0,
        case.site,
        facts,
        image_deviation=max(float(intensity.std()), 1e-6),
        low_mm=(float(low[0]), float(low[1]), float(low[2])),
        high_mm=(float(high[0]), float(high[1]), float(high[2])),
    )


def is_examined(store: LabelStore, case_id: str, round: int) -> bool:
    """Whether a case is done in a round."""
    return exists(_case_file(store.round_folder(round), case_id))


def read_examined(store: LabelStore, case_id: str, round: int) -> Examined:
    """What a round keeps of a case.

    Raises:
        StorageError: the case is not done.
        DataError: damaged_round, where the file cannot be read.
    """
    location = _case_file(store.round_folder(round), case_id)
    try:
        return _from_json(json.loads(read_bytes(location)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{location.uri}: is damaged ({error!r})", "Delete it; the round does this case again.",
            code="damaged_round",
        ) from error  # fmt: skip


def read_evidence(store: LabelStore, case_id: str, round: int) -> LabelEvidence | None:
    """The evidence for confident learning, where a round has it."""
    location = store.round_folder(round).child("cases", f"{case_id}.npz")
    if not exists(location):
        return None
    with np.load(io.BytesIO(read_bytes(location))) as stored:
        histogram = np.zeros(stored["shape"], np.int64)
        histogram.reshape(-1)[stored["index"]] = stored["count"]
        return LabelEvidence(histogram, stored["own"], float(stored["voxel_mm3"]))


def with_doubts(
    facts: CaseFacts, evidence: LabelEvidence, threshold: Array, structures: Sequence[str]
) -> CaseFacts:
    """The facts with what confident learning doubts, which only the whole collection's thresholds tell."""
    joint = confident_joint(evidence, threshold)
    off = joint - np.diag(np.diag(joint))
    doubted = off.sum(axis=0) + off.sum(axis=1)
    known = {
        name: replace(facts.structures[name], doubted_mm3=float(doubted[index]))
        for index, name in enumerate(structures)
        if name in facts.structures
    }
    return replace(facts, structures=known)


def _write_maps(folder: Location, case: Case, maps: Array) -> None:
    header = CaseHeader(case.case_id, case.spacing_mm, MAPS, case.affine)
    target = folder.child("maps", f"{case.case_id}.arrow")
    write_case(target.local_path, maps, None, header=header)


def _write_evidence(folder: Location, case_id: str, evidence: LabelEvidence) -> None:
    """Sparse: of K · K · 256 cells most are empty."""
    flat = evidence.histogram.reshape(-1)
    index = np.flatnonzero(flat)
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        shape=np.array(evidence.histogram.shape),
        index=index,
        count=flat[index],
        own=evidence.own_probability,
        voxel_mm3=np.array(evidence.voxel_mm3),
    )
    write_atomic(folder.child("cases", f"{case_id}.npz"), stream.getvalue())


def _case_file(folder: Location, case_id: str) -> Location:
    return folder.child("cases", f"{case_id}.json")


def _to_json(found: Examined) -> dict[str, Any]:
    facts = asdict(found.facts)
    return {
        "facts": facts,
        "consensus": dict(found.consensus_facts),
        "versions": [asdict(version) for version in found.versions],
    }


def _from_json(fields: Mapping[str, Any]) -> Examined:
    facts = fields["facts"]
    structures = {
        name: StructureFacts(**{key: _typed(value) for key, value in one.items()})
        for name, one in facts["structures"].items()
    }
    low, high = tuple(facts["low_mm"]), tuple(facts["high_mm"])
    case = CaseFacts(**{**facts, "structures": structures, "low_mm": low, "high_mm": high})
    versions = tuple(NewVersion(**{**one, "source": Source(**one["source"])}) for one in fields["versions"])
    return Examined(case, fields["consensus"], versions)


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return math.nan if value is None else value
