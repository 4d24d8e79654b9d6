"""`keygen`, `assess`, `sign`, `verify`, `trust`, `revoke`: for assessors, coordinators and servers."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox_compliance.cli_assess import app as assess_app
from fedvox_compliance.cli_common import JsonOption, NoInputOption, emit
from fedvox_compliance.cli_trust import (
    KeyOption,
    RootOption,
    StoreOption,
    open_store,
    present,
    sign_store,
    signing_key,
)
from fedvox_compliance.cli_trust import app as trust_app

if TYPE_CHECKING:
    from fedvox_compliance.attestation import VerifiedAttestation
    from fedvox_compliance.catalogue import Catalogue

app = typer.Typer(rich_markup_mode=None)
app.add_typer(assess_app, name="assess", help="Draw a sample, look at the evidence, record what was found.")
app.add_typer(trust_app, name="trust", help="Manage the assessors' keys that are trusted.")

StudyOption = Annotated[str, typer.Option("--study", help="The study's name.", show_default=False)]
NodeOption = Annotated[
    str,
    typer.Option(
        "--node-key", help="The node's public key: a file, or its sha256: fingerprint.", show_default=False
    ),
]
EnvelopeArgument = Annotated[Path, typer.Argument(help="The attestation.", show_default=False)]


@app.command(epilog="Example: fedvox-compliance keygen assessor.pem")
def keygen(
    path: Annotated[
        Path, typer.Argument(help="Where the private key goes; the public one gets .pub.", show_default=False)
    ],
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a signing key, encrypted under a passphrase and readable by you alone.

    The passphrase is typed, or taken from FEDVOX_KEY_PASSPHRASE; never from the command line.
    """
    from fedvox_compliance.keys import ask_passphrase, generate_key

    passphrase = ask_passphrase(
        "Passphrase (12 characters or more): ", confirm=True, allow_prompt=not no_input
    )
    public = generate_key(path, passphrase)
    value = {"schema": "fedvox.key/1", "key_id": public.key_id, "private": str(path), "public": f"{path}.pub"}
    emit(value, f"{path}.pub  {public.key_id}", as_json=as_json)


@app.command(
    epilog=(
        "Example: fedvox-compliance sign clinic-a --record paper.json --key assessor.pem --study S "
        "--node-key node.pub -o att.json"
    ),
)
def sign(
    folder: Annotated[Path, typer.Argument(help="The clinic's folder, as submitted.", show_default=False)],
    record: Annotated[
        Path, typer.Option("--record", help="The working paper of `assess start`.", show_default=False)
    ],
    key: KeyOption,
    study: StudyOption,
    node_key: NodeOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the attestation goes.", show_default=False)
    ],
    valid_days: Annotated[
        int, typer.Option("--valid-days", min=1, max=366, help="How long it is valid.")
    ] = 180,
    previous: Annotated[
        Path | None,
        typer.Option(
            "--previous",
            help="The clinic's last attestation: its history must go on from there.",
            show_default=False,
        ),
    ] = None,
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Recompute the score from the answers and what was found, and sign an attestation.

    Nothing is signed while a drawn answer has not been looked at, or after one was found to be false.
    """
    from fedvox_compliance.assess import Purpose, attest
    from fedvox_compliance.assessor_record import load_record
    from fedvox_compliance.attestation import issue
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.files import problems_named, write_atomic
    from fedvox_compliance.workspace import Workspace

    if output.exists():
        raise UsageError(f"{output}: exists already", "It may hold others' signatures; choose another name.")
    if previous is not None:
        _require_continuity(folder, previous)
    paper, catalogue = load_record(record), Workspace.open(folder).catalogue
    private = signing_key(key, no_input=no_input)
    purpose = Purpose(study, _node_key(node_key), valid_days)
    with problems_named("sign"):
        predicate, report = attest(paper, folder, catalogue, purpose, private.public, now=present())
    write_atomic(output, issue(predicate, private), mode=0o644)
    value = {"schema": "fedvox.signed/1", "serial": predicate.serial, "file": str(output)}
    value |= predicate.result.model_dump(mode="json")
    text = (
        f"{output}: serial {predicate.serial}\n{predicate.clinic}, {study}: score {predicate.result.score}, tier "
        f"{report.tier}, {'eligible' if report.eligible else 'NOT eligible'}, assurance {predicate.result.assurance}; "
        f"until {predicate.expires_at:%Y-%m-%d}\n{predicate.notice}"
    )
    emit(value, text, as_json=as_json)


@app.command(
    epilog=(
        "Example: fedvox-compliance verify att.json --store trust.json --root root.pem.pub --study "
        "S --node-key node.pub --clinic 'Clinic A'"
    ),
)
def verify(
    envelope: EnvelopeArgument,
    store: StoreOption,
    root: RootOption,
    study: StudyOption,
    node_key: NodeOption,
    clinic: Annotated[
        str, typer.Option("--clinic", help="The clinic the node belongs to.", show_default=False)
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="Accepted profiles; all of this version if left out."),
    ] = None,
    min_sequence: Annotated[int, typer.Option("--min-sequence", help="Refuse an older trust store.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Verify an attestation against a trust store. Leaves with 6 when it is refused, 7 when it has expired."""
    from fedvox_compliance.attestation import verify_attestation
    from fedvox_compliance.dsse import MAX_ENVELOPE_BYTES
    from fedvox_compliance.files import read_limited

    now = present()
    trusted = open_store(store, root, now=now, min_sequence=min_sequence)
    verified = verify_attestation(
        read_limited(envelope, MAX_ENVELOPE_BYTES),
        trusted,
        now=now,
        study=study,
        node_key=_node_key(node_key),
        clinic=clinic,
        catalogues=_accepted(profile),
    )
    emit(_verified_to_dict(verified), _verified_text(verified), as_json=as_json)


@app.command(
    epilog=(
        "Example: fedvox-compliance revoke 0123456789abcdef0123456789abcdef --store trust.json "
        "--root root.pem.pub --key root.pem"
    ),
)
def revoke(
    serial: Annotated[str, typer.Argument(help="The attestation's serial, 32 digits.", show_default=False)],
    store: StoreOption,
    root: RootOption,
    key: KeyOption,
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Withdraw one attestation; servers refuse it from their next trust store on."""
    from fedvox_compliance.trust_file import revoke_serial

    now = present()
    changed = revoke_serial(open_store(store, root, now=now, allow_stale=True), serial, now, note)
    sign_store(store, changed, key, no_input=no_input)
    value = {
        "schema": "fedvox.revoked/1",
        "store": str(store),
        "sequence": changed.sequence,
        "serial": serial,
    }
    emit(value, f"{store}: sequence {changed.sequence}, {serial} withdrawn", as_json=as_json)


def _require_continuity(folder: Path, previous: Path) -> None:
    from fedvox_compliance.assess import require_continuity
    from fedvox_compliance.attestation import read_unverified
    from fedvox_compliance.dsse import MAX_ENVELOPE_BYTES
    from fedvox_compliance.files import read_limited

    statement = read_unverified(read_limited(previous, MAX_ENVELOPE_BYTES))
    require_continuity(folder, statement.predicate.answers)


def _node_key(given: str) -> bytes | str:
    from fedvox_compliance.files import read_limited

    return given if given.startswith("sha256:") else read_limited(Path(given), 64 * 1024)


def _accepted(profiles: list[str] | None) -> list[Catalogue]:
    from fedvox_compliance.catalogue import list_profiles, load_catalogue

    return [load_catalogue(profile) for profile in profiles or list_profiles()]


def _verified_to_dict(verified: VerifiedAttestation) -> dict[str, Any]:
    return {
        "schema": "fedvox.verified/1",
        "serial": verified.serial,
        "clinic": verified.clinic,
        "study": verified.study,
        "score": verified.score,
        "tier": verified.tier,
        "eligible": verified.eligible,
        "assurance": verified.assurance.label,
        "key_ids": list(verified.key_ids),
        "expires_at": verified.expires_at.astimezone(dt.UTC).isoformat(),
    }


def _verified_text(verified: VerifiedAttestation) -> str:
    body = verified.statement.predicate
    return (
        f"Verified. {verified.clinic}, {verified.study}, until {verified.expires_at:%Y-%m-%d}.\n"
        f"Score {body.result.score}, tier {verified.tier}, {'eligible' if verified.eligible else 'NOT eligible'}; "
        f"assurance: {verified.assurance.label}. Serial {verified.serial}, assessor {body.assessor.name}.\n"
        f"{body.notice}"
    )
