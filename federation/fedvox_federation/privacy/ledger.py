"""One clinic's privacy account: what its patients have spent, over rounds, restarts and experiments.

    ledger = PrivacyLedger.open_or_create(folder, Terms(site="Nord", dataset="sha256:…", epsilon=8.0, delta=1e-5))
    booked = ledger.reserve(run="mama-mia-2027", round_number=3, phase=Phase(1.1, 0.05, 40))   # before training
    …train at most those steps…
    ledger.commit(booked, update_sha256=…)                                                     # before sending

It lives on the clinic's own disk. Nothing that the server says or forgets changes it, and a new run does not
start at zero. A reservation counts in full from the moment it is on disk. If the process dies before the
commit, it goes on counting: an account may say too much, never too little. A reservation that would pass the
budget is refused before any gradient is computed.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedvox.errors import ConfigError, StorageError
from fedvox_federation.errors import BudgetExhausted, LedgerDamaged, PrivacyError
from fedvox_federation.privacy import chain as chains
from fedvox_federation.privacy.accountant import Accountant, Phase, check_accountant, compose
from fedvox_federation.privacy.chain import Chain, Entry

OPENED, RESERVED, COMMITTED = "opened", "reserved", "committed"
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Terms:
    """What the clinic agreed to, fixed when the ledger is opened.

    Attributes:
        site: the clinic's name.
        dataset: fingerprint of the patients it is about; another set of patients needs another ledger.
        epsilon: the budget.
        delta: δ of everything together.
        accountant: `prv`, or `rdp` where later noise may depend on earlier results.
        unit: what is protected as one.
        relation: between the data sets that must not be told apart.
    """

    site: str
    dataset: str
    epsilon: float
    delta: float
    accountant: Accountant = "prv"
    unit: str = "patient"
    relation: str = "add or remove one"

    def __post_init__(self) -> None:
        check_accountant(self.accountant)
        if not (0 < self.epsilon < float("inf") and 0 < self.delta < 1):
            raise PrivacyError(f"a budget of ε = {self.epsilon} at δ = {self.delta} means nothing")


@dataclass(frozen=True)
class Reservation:
    """Steps that count from now on.

    Attributes:
        id: random.
        run: name of the federated run.
        round_number: of that run.
        phase: noise, sample rate and number of steps.
        committed_steps: None until committed.
        update_sha256: hash of the update that left, once committed.
        at: when it was reserved, UTC.
    """

    id: str
    run: str
    round_number: int
    phase: Phase
    committed_steps: int | None = None
    update_sha256: str = ""
    at: str = ""

    @property
    def counted(self) -> Phase:
        """What it costs: all reserved steps, or the committed ones."""
        return self.phase if self.committed_steps is None else replace(self.phase, steps=self.committed_steps)


@dataclass(frozen=True)
class Account:
    """The sum of all entries.

    Attributes:
        terms: see `Terms`.
        reservations: by id, in order.
        epsilon: as recorded by the last entry: spent, open reservations included.
    """

    terms: Terms
    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    epsilon: float = 0.0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Everything that counts."""
        return tuple(one.counted for one in self.reservations.values())

    @property
    def left_open(self) -> tuple[Reservation, ...]:
        """Reserved and not committed: in work, or left by a crash."""
        return tuple(one for one in self.reservations.values() if one.committed_steps is None)

    def recompute(self, *more: Phase) -> float:
        """ε of everything that counts, and of further phases."""
        return compose((*self.phases, *more), self.terms.delta, accountant=self.terms.accountant)


class PrivacyLedger:
    """A clinic's account on disk. Safe for several processes at once; see the module for its use.

    Args:
        folder: as made by `create`.

    Raises:
        StorageError: no ledger there.
        LedgerDamaged: see `fedvox_federation.privacy.chain`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.account()

    @classmethod
    def create(cls, folder: Path | str, terms: Terms) -> PrivacyLedger:
        """Start an account.

        Raises:
            StorageError: there is one already, or the folder cannot be written.
        """
        chains.create(Path(folder), OPENED, {"id": secrets.token_hex(16), **asdict(terms)})
        return cls(folder)

    @classmethod
    def open_or_create(cls, folder: Path | str, terms: Terms) -> PrivacyLedger:
        """The account of these terms, which is started if there is none.

        Raises:
            ConfigError: the account on disk has other terms.
            LedgerDamaged: see `fedvox_federation.privacy.chain`.
        """
        if not chains.exists(Path(folder)):
            try:
                return cls.create(folder, terms)
            except StorageError:
                if not chains.exists(Path(folder)):  # else another process was first
                    raise
        ledger = cls(folder)
        agreed = ledger.account().terms
        for name, value in asdict(terms).items():
            if value != (there := getattr(agreed, name)):
                raise ConfigError(
                    f"{folder}: the ledger was opened with {name} {there!r}, not {value!r}",
                    "Use the agreed terms. Other patients need a ledger of their own; the same never do.",
                )
        return ledger

    def account(self) -> Account:
        """The account now, read from disk and checked."""
        return balance(chains.read(self.folder).entries)

    def reserve(self, *, run: str, round_number: int, phase: Phase) -> Reservation:
        """Count steps before they are trained; on disk when this returns.

        Raises:
            BudgetExhausted: they would pass the budget; nothing was written.
            PrivacyError: no noise, or no steps.
            StorageError: not written; do not train.
        """
        if phase.noise_multiplier == 0 or phase.steps == 0:
            raise PrivacyError(f"{phase} cannot be accounted for", "Reserve at least one step, with noise.")
        booking = Reservation(secrets.token_hex(16), run, round_number, phase)
        while True:
            seen = chains.read(self.folder)
            spent = _checked_cost(balance(seen.entries), phase)
            body = {
                "reservation": booking.id,
                "run": run,
                "round": round_number,
                **asdict(phase),
                "epsilon": spent,
            }
            if written := chains.append(self.folder, seen, RESERVED, body):
                return replace(booking, at=written.entries[-1].at)

    def commit(self, reservation: Reservation, *, update_sha256: str, steps: int | None = None) -> None:
        """Record what was trained, before the update leaves. Repeating it changes nothing.

        Args:
            reservation: from `reserve`.
            update_sha256: hash of the update that is about to leave.
            steps: how many were trained, if fewer than reserved *for a reason other than the data* (a
                deadline, a stop from outside). A stop because of a loss or a gradient counts in full.

        Raises:
            PrivacyError: unknown, committed with something else, or more steps than reserved.
            StorageError: not written; do not send.
        """
        if not _SHA256.fullmatch(update_sha256):
            raise PrivacyError(f"{update_sha256!r} is no SHA-256 in hexadecimal")
        while True:
            seen = chains.read(self.folder)
            account = balance(seen.entries)
            known = account.reservations.get(reservation.id)
            if known is None:
                raise PrivacyError(f"reservation {reservation.id} is not in {self.folder}")
            done = known.phase.steps if steps is None else steps
            if known.committed_steps is not None:
                _check_repeated(known, done, update_sha256)
                return
            if not 0 <= done <= known.phase.steps:
                raise PrivacyError(f"{done} steps were trained, {known.phase.steps} were reserved")
            settled = replace(known, committed_steps=done, update_sha256=update_sha256)
            after = replace(account, reservations={**account.reservations, known.id: settled})
            spent = account.epsilon if done == known.phase.steps else after.recompute()
            body = {
                "reservation": known.id,
                "steps": done,
                "update_sha256": update_sha256,
                "epsilon": spent,
            }
            if chains.append(self.folder, seen, COMMITTED, body):
                return

    def affordable_steps(self, noise_multiplier: float, sample_rate: float, wanted: int) -> int:
        """How many steps of this kind the budget still allows, at most `wanted`."""
        account = self.account()
        low, high = 0, wanted
        while low < high:
            middle = (low + high + 1) // 2
            if account.recompute(Phase(noise_multiplier, sample_rate, middle)) <= account.terms.epsilon:
                low = middle
            else:
                high = middle - 1
        return low

    def committed(self, run: str, round_number: int) -> Reservation | None:
        """The committed work of a round, so that a repeated request is answered from the cache, for nothing."""
        found = (
            one
            for one in self.account().reservations.values()
            if (one.run, one.round_number) == (run, round_number) and one.committed_steps is not None
        )
        return next(found, None)


def balance(entries: Iterable[Entry]) -> Account:
    """The account that a chain's entries add up to.

    Raises:
        LedgerDamaged: an entry that makes no sense, or of a kind that this version does not know.
    """
    account: Account | None = None
    for entry in entries:
        try:
            account = _apply(account, entry)
        except (KeyError, TypeError, ValueError, PrivacyError) as wrong:
            raise LedgerDamaged(
                f"entry {entry.n} ({entry.kind}) makes no sense: {wrong!r}",
                "If a newer version wrote it, use that one. Otherwise do not train, and have it looked at.",
            ) from None
    if account is None:
        raise LedgerDamaged("the ledger has no first entry", "Do not train, and have it looked at.")
    return account


def _apply(account: Account | None, entry: Entry) -> Account:
    body = entry.body
    if account is None or entry.kind == OPENED:
        if account is not None or entry.kind != OPENED:
            raise ValueError("a ledger is opened once, by its first entry")
        return Account(Terms(**{key: value for key, value in body.items() if key != "id"}))
    if entry.kind == chains.RECOVERED:
        return account
    known = dict(account.reservations)
    if entry.kind == RESERVED:
        phase = Phase(float(body["noise_multiplier"]), float(body["sample_rate"]), body["steps"])
        name = body["reservation"]
        if name in known:
            raise ValueError("reserved twice")
        known[name] = Reservation(name, body["run"], body["round"], phase, at=entry.at)
    elif entry.kind == COMMITTED:
        one = known[body["reservation"]]
        if one.committed_steps is not None or not 0 <= body["steps"] <= one.phase.steps:
            raise ValueError("committed twice, or more than was reserved")
        known[one.id] = replace(one, committed_steps=body["steps"], update_sha256=str(body["update_sha256"]))
    else:
        raise ValueError("unknown kind")
    return replace(account, reservations=known, epsilon=float(body["epsilon"]))


def _checked_cost(account: Account, phase: Phase) -> float:
    spent = account.recompute(phase)
    if spent > account.terms.epsilon:
        raise BudgetExhausted(
            f"{account.terms.site}: {phase.steps} steps with noise {phase.noise_multiplier:g} at sample rate "
            f"{phase.sample_rate:g} would bring ε to {spent:.4g}; the budget is {account.terms.epsilon:g}, "
            f"and {account.epsilon:.4g} is spent",
            "This clinic takes no further part with these patients, or trains fewer steps with more noise.",
        )
    return spent


def _check_repeated(known: Reservation, steps: Any, update_sha256: str) -> None:
    if (known.committed_steps, known.update_sha256) != (steps, update_sha256):
        raise PrivacyError(
            f"reservation {known.id} was committed with another update",
            "Reserve again: every update that leaves is trained and counted on its own.",
        )


def verify(folder: Path | str, *, contains: str = "", recompute: bool = False) -> Chain:
    """Check a whole ledger.

    Args:
        folder: of the ledger.
        contains: hash of an entry, known from elsewhere, that must be in it.
        recompute: also compute every recorded ε again (needs Opacus).

    Raises:
        StorageError: no ledger there.
        LedgerDamaged: with what is wrong.
    """
    chain = chains.read(Path(folder))
    balance(chain.entries)
    if contains and contains not in {entry.sha256 for entry in chain.entries}:
        raise LedgerDamaged(
            f"{folder}: entry {contains[:16]}… is not in it: an older copy, or another ledger",
            "Find out where this folder was restored from. Do not train.",
        )
    for number in range(1, len(chain.entries) + 1) if recompute else ():
        _check_recorded(chain.entries[:number])
    return chain


def _check_recorded(entries: tuple[Entry, ...]) -> None:
    account, last = balance(entries), entries[-1]
    if last.kind not in (RESERVED, COMMITTED):
        return
    expected = account.recompute()
    if account.epsilon < expected * 0.99 or expected > account.terms.epsilon * 1.01:
        raise LedgerDamaged(
            f"entry {last.n} records ε {account.epsilon:.4g}; computed again it is {expected:.4g}, of a "
            f"budget of {account.terms.epsilon:g}",
            "Do not train. Which program wrote it?",
        )
