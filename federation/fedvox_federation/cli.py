"""`fedvox-federation`: what a clinic, a data protection officer and a study office ask on the terminal.

Results go to stdout, as text or with `--json`; everything else goes to stderr. Torch and Opacus are imported by
the commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import typer

from fedvox.cli import leave_with_code
from fedvox.errors import FedvoxError
from fedvox_compliance.errors import ComplianceError
from fedvox_federation import (
    cli_audit,
    cli_bundle,
    cli_credentials,
    cli_demo,
    cli_experiment,
    cli_ledger,
    cli_preflight,
    cli_status,
    cli_supernode,
)
from fedvox_federation.cli_common import JsonOption, emit, new_app

DeltaOption = Annotated[float, typer.Option("--delta", help="δ, at most 1 / (10 × patients).")]
RateOption = Annotated[
    float, typer.Option("--sample-rate", help="Probability with which each patient takes part in a step.")
]
StepsOption = Annotated[int, typer.Option("--steps", help="Steps in all rounds, empty ones included.")]
AccountantOption = Annotated[str, typer.Option("--accountant", help="prv, or rdp (looser).")]


app = new_app("Federated fine-tuning under differential privacy.")
app.add_typer(cli_ledger.app, name="ledger")
app.add_typer(cli_bundle.app, name="bundle")
app.command("dp-preflight")(cli_preflight.dp_preflight)
app.command("certificates")(cli_credentials.certificates)
app.command("node-key")(cli_credentials.node_key)
app.command("supernode", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    cli_supernode.supernode
)
app.command("demo-data")(cli_demo.demo_data)
app.command("audit")(cli_audit.audit)
app.command("experiment")(cli_experiment.experiment)
app.command("status")(cli_status.status)


@app.callback()
def _root() -> None:
    pass


@app.command("epsilon")
def _epsilon(
    noise_multiplier: Annotated[
        float, typer.Option("--noise-multiplier", help="Noise, in units of the clipping norm.")
    ],
    sample_rate: RateOption,
    steps: StepsOption,
    delta: DeltaOption,
    accountant: AccountantOption = "prv",
    as_json: JsonOption = False,
) -> None:
    """What training costs: ε, as an upper bound."""
    from fedvox_federation.privacy.accountant import check_accountant, epsilon

    check_accountant(accountant)
    spent = epsilon(noise_multiplier, sample_rate, steps, delta, accountant=accountant)  # type: ignore[arg-type]
    emit({"epsilon": spent, "delta": delta}, f"ε = {spent:.4g} at δ = {delta:g}", as_json=as_json)


@app.command("noise")
def _noise(
    epsilon: Annotated[float, typer.Option("--epsilon", help="The promised ε.")],
    delta: DeltaOption,
    sample_rate: RateOption,
    steps: StepsOption,
    accountant: AccountantOption = "prv",
    as_json: JsonOption = False,
) -> None:
    """How much noise a promise needs: the least noise multiplier."""
    from fedvox_federation.privacy.accountant import check_accountant, noise_multiplier

    check_accountant(accountant)
    found = noise_multiplier(epsilon, delta, sample_rate, steps, accountant=accountant)  # type: ignore[arg-type]
    emit({"noise_multiplier": found}, f"noise multiplier {found:.4g}", as_json=as_json)


def main() -> NoReturn:
    """Entry point of the `fedvox-federation` command."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(message)s")
    leave_with_code(
        typer.main.get_command(app),
        arguments,
        debug=debug,
        prog_name="fedvox-federation",
        expected=(FedvoxError, ComplianceError),
    )
