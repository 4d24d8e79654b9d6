"""What server and clinics say to each other, and nothing besides: numbers, short texts and arrays.

    server -> clinic    RoundOrder + arrays     what to train from, and how this round differs from the last; under
                                                SCAFFOLD, each clinic's own correction of its gradients as well
    clinic -> server    ClinicReply             the trained parameters and what the round's table shows, or a code

Nothing is pickled in either direction. A clinic that takes no part answers as well: the same records, no arrays and a
code of `Refusal`. An exception's text never leaves a clinic, since it may name files, and files may name people.

The dataclasses need numpy alone; `flwr` is imported by the four functions that put them into Flower's records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fedvox.errors import RunError
from fedvox_compliance.dsse import MAX_ENVELOPE_BYTES

if TYPE_CHECKING:
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord, RecordDict

ARRAYS, ORDER, METRICS, CLINIC = "arrays", "config", "metrics", "clinic"
"""Keys of the records. The first three are those of Flower's strategies."""
NUM_EXAMPLES = "num-examples"
"""Key of the number of patients among the metrics, as Flower's strategies call it."""
CORRECTION = "scaffold-correction/"
"""Begins the names of those arrays of an order that are a clinic's correction; see `with_correction`."""

_NPY = b"\x93NUMPY"

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Refusal(StrEnum):
    """Why a clinic sends no update. The whole vocabulary."""

    BUDGET_EXHAUSTED = "budget-exhausted"
    """The round would take the clinic's patients beyond its budget; it has not begun."""
    NOT_ADMITTED = "not-admitted"
    """No valid attestation, or an eligibility gate is not passed."""
    NO_PROMISE = "no-promise"
    """The study's noise or δ does not keep what was promised."""
    UNSAFE_MODEL = "unsafe-model"
    """The preflight found that clipping bounds nothing."""
    LEDGER_DAMAGED = "ledger-damaged"
    """A person must look at the clinic's ledger."""
    BUNDLE_NOT_APPROVED = "bundle-not-approved"
    """The code is not the one that the clinic approved."""
    OTHER_CONFIG = "other-config"
    """Server and clinic were started with different configurations."""
    OTHER_WEIGHTS = "other-weights"
    """The clinic's pretrained weights are not the server's."""
    BAD_ORDER = "bad-order"
    """The order cannot be read, or its arrays do not fit the model."""
    ALREADY_ANSWERED = "already-answered"
    """The round was trained and sent, and its cached reply is gone; training again would spend again."""
    DATA = "data"
    """The clinic's store cannot be read, or holds nothing to train on."""
    CONFIG = "config"
    """The clinic's own file, or the study's, cannot be used."""
    OUT_OF_MEMORY = "out-of-memory"
    FAILED = "failed"
    """Anything else; the clinic's log tells."""


class BadMessage(RunError):
    """A message from the network is not what the protocol says."""


@dataclass(frozen=True)
class RoundOrder:
    """What the server asks for.

    Attributes:
        run: name of the federated run.
        round_number: from 1.
        rounds: of the run.
        config_sha256: `FederationConfig.sha256`.
        base_sha256: of all parameters that are not sent (see `fedvox_federation.client.model.base_sha256`).
        proximal_mu: of FedProx; 0 for none.
    """

    run: str
    round_number: int
    rounds: int
    config_sha256: str
    base_sha256: str
    proximal_mu: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.round_number <= self.rounds:
            raise BadMessage(f"round {self.round_number} of {self.rounds}")
        if not (math.isfinite(self.proximal_mu) and self.proximal_mu >= 0):
            raise BadMessage(f"proximal_mu is {self.proximal_mu}")


@dataclass(frozen=True)
class ClinicReply:
    """What a clinic answers.

    Attributes:
        clinic: its name.
        run: of the order.
        round_number: of the order.
        refusal: why there is no update; None with one.
        arrays: trained and shared parameters by name, float32; empty with a refusal.
        patients: that the clinic trains on.
        steps: made in this round.
        noise_multiplier: in units of the clipping norm.
        sample_rate: of the patients.
        epsilon_spent: on these patients in all, this round included; infinite without noise.
        delta: of it.
        score: of the clinic's attestation, or 0.
        tier: likewise.
        loss: mean over the round; NaN where the clinic does not share it, like the next two.
        dice_before: of the held-out patients with the server's model.
        dice_after: with the clinic's.
        seconds: that the round took.
        update_sha256: of the arrays, as in the clinic's ledger (see `arrays_sha256`).
        attestation: the signed envelope as text, or empty.
        node_key: public key that the attestation is for, or empty.
        bundle_sha256: of the code that ran.
        replayed: the same order had been answered before: this is that answer.
    """

    clinic: str
    run: str
    round_number: int
    refusal: Refusal | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    patients: int = 0
    steps: int = 0
    noise_multiplier: float = 0.0
    sample_rate: float = 0.0
    epsilon_spent: float = 0.0
    delta: float = 0.0
    score: float = 0.0
    tier: int = 0
    loss: float = math.nan
    dice_before: float = math.nan
    dice_after: float = math.nan
    seconds: float = 0.0
    update_sha256: str = ""
    attestation: str = ""
    node_key: str = ""
    bundle_sha256: str = ""
    replayed: bool = False

    @property
    def expected_batch_size(self) -> float:
        """Patients of a step on average."""
        return self.sample_rate * self.patients


_TEXTS = {"clinic": 200, "run": 200, "update_sha256": 64, "attestation": MAX_ENVELOPE_BYTES, "node_key": 64 * 1024,
          "bundle_sha256": 64}  # fmt: skip
"""Name -> most characters: whatever a clinic writes here comes into the server's tables and log."""
_WHOLE = ("round_number", "steps", "tier")
_NUMBERS = ("noise_multiplier", "sample_rate", "epsilon_spent", "delta", "score", "loss", "dice_before",
            "dice_after", "seconds")  # fmt: skip


def encode_order(order: RoundOrder, arrays: Mapping[str, Array]) -> RecordDict:
    """An order and the parameters to start from, as Flower's records."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({ARRAYS: _to_record(arrays), ORDER: ConfigRecord(dataclasses.asdict(order))})


def decode_order(content: RecordDict) -> tuple[RoundOrder, Arrays]:
    """The inverse of `encode_order`. Further keys of a strategy are left alone.

    Raises:
        BadMessage: a record or a value is missing or of another type.
    """
    config = _record(content.config_records, ORDER)
    names = {one.name: one.type for one in dataclasses.fields(RoundOrder)}
    values = {
        name: _value(config, name, {"int": int, "float": float}.get(str(kind), str))
        for name, kind in names.items()
    }
    return RoundOrder(**values), _from_record(_record(content.array_records, ARRAYS))


def with_correction(arrays: Mapping[str, Array], correction: Mapping[str, Array]) -> Arrays:
    """The arrays of an order to one clinic.

    Args:
        arrays: the parameters to start from.
        correction: what the clinic adds to its gradients, by the same names; empty for nothing.
    """
    return {**arrays, **{CORRECTION + name: value for name, value in correction.items()}}


def split_correction(arrays: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    """The inverse of `with_correction`: parameters, and correction."""
    correction = {
        name.removeprefix(CORRECTION): value for name, value in arrays.items() if name.startswith(CORRECTION)
    }
    return {name: value for name, value in arrays.items() if not name.startswith(CORRECTION)}, correction


def encode_reply(reply: ClinicReply) -> RecordDict:
    """A reply as Flower's records: the same keys whatever it says."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    metrics: dict[str, Any] = {NUM_EXAMPLES: reply.patients}
    metrics |= {name: int(getattr(reply, name)) for name in _WHOLE}
    metrics |= {name: float(getattr(reply, name)) for name in _NUMBERS}
    texts: dict[str, Any] = {name: getattr(reply, name) for name in _TEXTS}
    texts |= {"refusal": reply.refusal or "", "replayed": reply.replayed}
    return RecordDict(
        {ARRAYS: _to_record(reply.arrays), METRICS: MetricRecord(metrics), CLINIC: ConfigRecord(texts)}
    )


def decode_reply(content: RecordDict) -> ClinicReply:
    """The inverse of `encode_reply`.

    Raises:
        BadMessage: a record or a value is missing or of another type.
    """
    metrics, texts = _record(content.metric_records, METRICS), _record(content.config_records, CLINIC)
    refusal = _value(texts, "refusal", str)
    if refusal and refusal not in set(Refusal):
        raise BadMessage("a refusal with an unknown code")
    return ClinicReply(
        refusal=Refusal(refusal) if refusal else None,
        arrays=_from_record(_record(content.array_records, ARRAYS)),
        patients=_value(metrics, NUM_EXAMPLES, int),
        replayed=_value(texts, "replayed", bool),
        **{name: _text(texts, name, longest) for name, longest in _TEXTS.items()},
        **{name: _value(metrics, name, int) for name in _WHOLE},
        **{name: _value(metrics, name, float) for name in _NUMBERS},
    )


def arrays_sha256(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of names: a ledger's `hash_of`, on arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order="C")
        digest.update(f"{name}\0torch.{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _to_record(arrays: Mapping[str, Array]) -> ArrayRecord:
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord

    return ArrayRecord({name: FlowerArray(np.asarray(value, order="C")) for name, value in arrays.items()})


def _from_record(record: ArrayRecord) -> Arrays:
    return {name: _opened(array) for name, array in record.items()}


def _opened(array: FlowerArray) -> Array:
    """Numpy's own format, read with pickling off; `numpy.load` by itself would also open archives.

    What a header may hold makes numpy raise nearly anything, MemoryError included: sizes and syntax are the sender's.
    """
    if not array.data.startswith(_NPY):
        raise BadMessage("an array is not in numpy's format")
    try:
        return array.numpy()
    except Exception as error:  # noqa: BLE001 - it must not end the program that reads it
        raise BadMessage(f"an array cannot be read: {type(error).__name__}") from None


def _record(records: Mapping[str, Any], key: str) -> Any:
    if key not in records:
        raise BadMessage(f"the record {key!r} is missing")
    return records[key]


def _text(record: Mapping[str, Any], key: str, longest: int) -> Any:
    value = _value(record, key, str)
    if len(value) > longest:
        raise BadMessage(f"{key!r} has {len(value)} characters; at most {longest} are read")
    return value


def _value(record: Mapping[str, Any], key: str, kind: type) -> Any:
    value = record.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadMessage(f"{key!r} is no {kind.__name__}")
    return value
