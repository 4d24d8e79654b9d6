"""`fedvox-federation ledger`: read and check a clinic's privacy account. Needs neither torch nor Opacus."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvox_federation.cli_common import JsonOption, emit, new_app
from fedvox_federation.privacy.chain import RECOVERED
from fedvox_federation.privacy.ledger import Account, PrivacyLedger, Reservation, verify

app = new_app("A clinic's privacy ledger.")

FolderArgument = Annotated[Path, typer.Argument(help="The ledger's folder.", show_default=False)]


@app.command("show")
def _show(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """What was agreed, what is spent, what is left, round by round."""
    account = PrivacyLedger(folder).account()
    emit(_as_json(account), _as_text(account), as_json=as_json)


@app.command("verify")
def _verify(
    folder: FolderArgument,
    contains: Annotated[
        str, typer.Option("--contains", help="Hash of an entry, noted elsewhere, that must be in it.")
    ] = "",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute every recorded ε again (needs Opacus).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every line against its hash, the chain and the head. Leaves with 6 if it does not hold."""
    chain = verify(folder, contains=contains, recompute=recompute)
    crashes = sum(entry.kind == RECOVERED for entry in chain.entries) + bool(chain.torn)
    found = {"entries": len(chain.entries), "head": chain.head, "interrupted_writes": crashes, "intact": True}
    text = f"intact: {len(chain.entries)} entries, {crashes} interrupted writes\nhead {chain.head}"
    emit(found, text, as_json=as_json)


def _as_json(account: Account) -> dict[str, Any]:
    return {
        "terms": asdict(account.terms),
        "epsilon": account.epsilon,
        "epsilon_left": account.terms.epsilon - account.epsilon,
        "rounds": [_round(one) for one in account.reservations.values()],
    }


def _round(one: Reservation) -> dict[str, Any]:
    return {
        "at": one.at,
        "run": one.run,
        "round": one.round_number,
        **asdict(one.phase),
        "state": "open" if one.committed_steps is None else "committed",
        "counted_steps": one.counted.steps,
        "update_sha256": one.update_sha256,
        "reservation": one.id,
    }


def _as_text(account: Account) -> str:
    terms = account.terms
    lines = [
        f"{terms.site}, data set {terms.dataset}",
        f"ε {account.epsilon:.4g} of {terms.epsilon:g} at δ = {terms.delta:g}"
        f" ({terms.accountant}; {terms.relation} {terms.unit})",
        "",
        f"{'reserved at':20}  {'run':24}  round  noise     rate    steps  state",
    ]
    lines += [
        f"{one.at:20}  {one.run:24.24}  {one.round_number:5}  {one.phase.noise_multiplier:<8.4g}"
        f"  {one.phase.sample_rate:<6.4g}  {one.counted.steps:5}  "
        + ("open, counts in full" if one.committed_steps is None else "committed")
        for one in account.reservations.values()
    ]
    return "\n".join(lines)
