"""Every error that the federation raises on purpose.

FedvoxError
├── InputError
│   ├── PrivacyError        parameters that give no guarantee, or none that was asked for; exit code 2
│   └── UnsafeModel         a model, loss or transform under which clipping bounds nothing; 4
└── RunError
    ├── BudgetExhausted     the next step would spend more than the clinic agreed to; 3
    ├── AuditFailed         an attack found more than the ledger says, or could find nothing; 5
    └── LedgerDamaged       a privacy ledger was changed, cut or replaced; 6

Commands print `message` and `remedy` and leave with `exit_code`; there is no traceback without `--debug`.
"""

from __future__ import annotations

from fedvox.errors import InputError, RunError


class PrivacyError(InputError):
    """Privacy parameters without a meaning, or with a weaker one than asked for."""


class UnsafeModel(InputError):
    """A layer, loss or transform for which per-patient clipping is not a bound.

    Args:
        message: every problem found, each naming its layer.
        remedy: what to change.
    """

    exit_code = 4


class BudgetExhausted(RunError):
    """The step would take the clinic's patients beyond the agreed (ε, δ). Nothing was done or sent."""

    exit_code = 3


class AuditFailed(RunError):
    """More leaked than the ledger says, or the audit cannot see what it must see."""

    exit_code = 5


class LedgerDamaged(RunError):
    """A privacy ledger does not hold together. Nobody may train on it until a person has looked."""

    exit_code = 6
