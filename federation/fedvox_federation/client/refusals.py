"""From what went wrong in a clinic to the one word that may leave it."""

from __future__ import annotations

from fedvox.errors import (
    CheckpointError,
    ConfigError,
    DamagedCase,
    DataError,
    OutOfMemory,
    RunError,
    StorageError,
)
from fedvox.inference.device import is_out_of_memory
from fedvox_federation.errors import BudgetExhausted, LedgerDamaged, PrivacyError, UnsafeModel
from fedvox_federation.protocol import BadMessage, Refusal


class Refused(RunError):
    """The clinic takes no part in a round.

    Args:
        code: all that the server is told.
        message: for the clinic's own log.
        remedy: likewise.
    """

    def __init__(self, code: Refusal, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.code = code


_CODES: tuple[tuple[type[Exception], Refusal], ...] = (
    (BadMessage, Refusal.BAD_ORDER),
    (BudgetExhausted, Refusal.BUDGET_EXHAUSTED),
    (UnsafeModel, Refusal.UNSAFE_MODEL),
    (LedgerDamaged, Refusal.LEDGER_DAMAGED),
    (PrivacyError, Refusal.NO_PROMISE),
    (OutOfMemory, Refusal.OUT_OF_MEMORY),
    (DamagedCase, Refusal.DATA),
    (DataError, Refusal.DATA),
    (StorageError, Refusal.DATA),
    (CheckpointError, Refusal.CONFIG),
    (ConfigError, Refusal.CONFIG),
)


def refusal_of(error: Exception) -> Refusal:
    """The code of an error."""
    if isinstance(error, Refused):
        return error.code
    if is_out_of_memory(error):
        return Refusal.OUT_OF_MEMORY
    return next((code for kind, code in _CODES if isinstance(error, kind)), Refusal.FAILED)
