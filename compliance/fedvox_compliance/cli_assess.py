"""`assess`: commit to a nonce, draw the sample, look at it question by question, and see what comes of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox_compliance.cli_common import (
    FolderArgument,
    JsonOption,
    LanguageOption,
    NoInputOption,
    OnOption,
    day_or_today,
    emit,
    tell,
)
from fedvox_compliance.cli_trust import KeyOption, signing_key

if TYPE_CHECKING:
    from fedvox_compliance.assessor_record import AssessorRecord, Finding
    from fedvox_compliance.workspace import Workspace

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

RecordArgument = Annotated[Path, typer.Argument(help="The working paper.", show_default=False)]
_CHOICES = {"1": "confirmed", "2": "not_shown", "3": "false"}


@app.command(epilog="Example: fedvox-compliance assess commit nonce")
def commit(
    nonce: Annotated[Path, typer.Argument(help="Where the secret nonce goes.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Before answers are submitted: draw a secret, and print the commitment to publish.

    The clinic cannot guess the sample, and you cannot choose it: it follows from your secret and its answers.
    """
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.files import write_atomic
    from fedvox_compliance.sampling import commitment_of, new_nonce

    if nonce.exists():
        raise UsageError(f"{nonce}: exists already", "A nonce is for one submission; choose a new name.")
    secret = new_nonce()
    write_atomic(nonce, secret.encode() + b"\n")
    emit(
        {"schema": "fedvox.commitment/1", "commitment": commitment_of(secret)},
        commitment_of(secret),
        as_json=as_json,
    )


@app.command(
    epilog=("Example: fedvox-compliance assess start clinic-a paper.json --nonce nonce --assessor 'Dr. A'"),
)
def start(
    folder: FolderArgument,
    record: RecordArgument,
    nonce: Annotated[Path, typer.Option("--nonce", help="The file of `assess commit`.", show_default=False)],
    assessor: Annotated[
        str, typer.Option("--assessor", envvar="FEDVOX_AUTHOR", help="Your name.", show_default=False)
    ],
    share: Annotated[float, typer.Option("--share", help="Of the answers beside gates.")] = 0.10,
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fix what was submitted, check its history, and draw: all gates and a random share of the rest."""
    from fedvox_compliance import assess
    from fedvox_compliance.assessor_record import load_nonce, save_record
    from fedvox_compliance.errors import UsageError
    from fedvox_compliance.files import problems_named
    from fedvox_compliance.sampling import detection_probability
    from fedvox_compliance.workspace import Workspace

    if record.exists():
        raise UsageError(f"{record}: exists already", "Go on with `assess check`, or choose another name.")
    space, secret, day = Workspace.open(folder), load_nonce(nonce), day_or_today(on)
    with problems_named("assess start"):
        paper = assess.start(folder, space.catalogue, assessor=assessor, nonce=secret, on=day, share=share)
    save_record(paper, record)
    false = -(-paper.population // 10)  # one in ten, and never none
    power = detection_probability(paper.population, false, len(paper.drawn))
    text = (
        f"{record}: {len(paper.gates)} gates and {len(paper.drawn)} of {paper.population} other answers of "
        f"{paper.clinic}.\nIf one in ten were false, the random part would hold one with probability {power:.0%}."
    )
    emit(_status(paper), text, as_json=as_json)


@app.command(epilog="Example: fedvox-compliance assess check clinic-a paper.json")
def check(
    folder: FolderArgument,
    record: RecordArgument,
    on: OnOption = None,
    language: LanguageOption = "en",
    no_input: NoInputOption = False,
) -> None:
    """Look at what was drawn, question by question. Every finding is saved at once; stop and go on at any time."""
    from fedvox_compliance.assess import record_finding, submitted
    from fedvox_compliance.assessor_record import Finding, load_record, save_record
    from fedvox_compliance.errors import AssessmentError, UsageError
    from fedvox_compliance.workspace import Workspace

    if no_input:
        raise UsageError("`assess check` asks questions", "Without them, use `assess record`.")
    space, paper = Workspace.open(folder), load_record(record)
    assessment = submitted(paper, folder)
    for number, control in enumerate(paper.open_controls, start=1):
        tell(f"\n[{number} of {len(paper.open_controls)}]")
        tell(_describe(space, control, language))
        finding, note = _ask()
        if finding is None:
            break
        try:
            paper = record_finding(
                paper, folder, assessment, control, Finding(finding), on=day_or_today(on), note=note
            )
        except AssessmentError as error:
            tell(f"Not recorded: {error}")
            continue
        save_record(paper, record)
    tell(_status_text(paper))


@app.command(
    "record",
    epilog=(
        "Example: fedvox-compliance assess record clinic-a paper.json GDPR.6.1 not_shown --note "
        "'the contract is not signed'"
    ),
)
def record_one(
    folder: FolderArgument,
    record: RecordArgument,
    control: Annotated[str, typer.Argument(help="The control's id.", show_default=False)],
    result: Annotated[str, typer.Argument(help="confirmed, not_shown or false.", show_default=False)],
    note: Annotated[str, typer.Option("--note", help="Why; obligatory unless confirmed.")] = "",
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record one finding without questions."""
    from fedvox_compliance.assess import record_finding, submitted
    from fedvox_compliance.assessor_record import load_record, save_record
    from fedvox_compliance.files import problems_named

    paper, finding, day = load_record(record), _finding(result), day_or_today(on)
    answers = submitted(paper, folder)
    with problems_named("assess record"):
        changed = record_finding(paper, folder, answers, control, finding, on=day, note=note)
    save_record(changed, record)
    emit(_status(changed), _status_text(changed), as_json=as_json)


@app.command(epilog="Example: fedvox-compliance assess extend clinic-a paper.json")
def extend(folder: FolderArgument, record: RecordArgument, as_json: JsonOption = False) -> None:
    """Double the random part, after too much of it was not shown."""
    from fedvox_compliance import assess
    from fedvox_compliance.assessor_record import load_record, save_record
    from fedvox_compliance.workspace import Workspace

    paper = load_record(record)
    changed = assess.extend(paper, assess.submitted(paper, folder), Workspace.open(folder).catalogue)
    save_record(changed, record)
    emit(_status(changed), _status_text(changed), as_json=as_json)


@app.command(epilog="Example: fedvox-compliance assess status clinic-a paper.json")
def status(
    folder: FolderArgument,
    record: RecordArgument,
    on: OnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far the assessment is, and what the score comes to with what was found."""
    from fedvox_compliance.assess import recompute
    from fedvox_compliance.assessor_record import load_record
    from fedvox_compliance.statement import NOTICE
    from fedvox_compliance.workspace import Workspace

    paper = load_record(record)
    report = recompute(paper, folder, Workspace.open(folder).catalogue, on=day_or_today(on))
    value = _status(paper) | {
        "overall": round(report.overall, 6),
        "tier": report.tier,
        "eligible": report.eligible,
    }
    value |= {"assurance": report.assurance.label, "notice": NOTICE}
    text = (
        f"{_status_text(paper)}\nRecomputed: {report.overall:.4f}, tier {report.tier}, "
        f"{'eligible' if report.eligible else 'NOT eligible'}, assurance {report.assurance.label}\n{NOTICE}"
    )
    emit(value, text, as_json=as_json)


@app.command(
    epilog=(
        "Example: fedvox-compliance assess countersign clinic-a paper.json attestation.json --key second.pem"
    ),
)
def countersign(
    folder: FolderArgument,
    record: RecordArgument,
    envelope: Annotated[
        Path, typer.Argument(help="The attestation; the signature is added to it.", show_default=False)
    ],
    key: KeyOption,
    no_input: NoInputOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a second signature, after coming to the same result from the same answers and findings."""
    from fedvox_compliance import attestation
    from fedvox_compliance.assess import require_agreement
    from fedvox_compliance.assessor_record import load_record
    from fedvox_compliance.dsse import MAX_ENVELOPE_BYTES
    from fedvox_compliance.files import read_limited, write_atomic
    from fedvox_compliance.workspace import Workspace

    data = read_limited(envelope, MAX_ENVELOPE_BYTES)
    statement = attestation.read_unverified(data)
    require_agreement(statement, load_record(record), folder, Workspace.open(folder).catalogue)
    write_atomic(envelope, attestation.countersign(data, signing_key(key, no_input=no_input)), mode=0o644)
    serial = statement.predicate.serial
    value = {"schema": "fedvox.countersigned/1", "file": str(envelope), "serial": serial}
    emit(value, f"{envelope}: countersigned, serial {serial}", as_json=as_json)


def _describe(space: Workspace, control_id: str, language: str) -> str:
    from fedvox_compliance.evidence import state_of
    from fedvox_compliance.interface import load_interface

    say, control, entry = (
        load_interface(language),
        space.catalogue.controls[control_id],
        space.entry(control_id),
    )
    answer = say(f"answer.{entry.answer.value}" if entry.answer else "answer.none")
    lines = [
        f"{control.id}  {control.citation}  {say.title(control)}",
        say.question(control),
        f"{say('column.answer')}: {answer} ({entry.author})",
    ]
    if entry.reason:
        lines.append(f"{say('column.reason')}: {entry.reason}")
    for document in entry.evidence:
        path = space.folder / document.path
        lines.append(
            f"{say('column.evidence')}: {path} ({state_of(document, space.folder).value}) {document.title}"
        )
    return "\n".join(lines)


def _ask() -> tuple[str | None, str]:
    """One finding from the keyboard, by number; None to stop."""
    while True:
        sys.stderr.write("1 confirmed   2 not shown   3 false   q stop > ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        answer = line.strip().lower()
        if not line or answer == "q":
            return None, ""
        if answer in _CHOICES:
            break
    if answer == "1":
        return _CHOICES[answer], ""
    sys.stderr.write("Why, in one sentence > ")
    sys.stderr.flush()
    return _CHOICES[answer], sys.stdin.readline().strip()


def _finding(name: str) -> Finding:
    from fedvox_compliance.assessor_record import Finding
    from fedvox_compliance.errors import UsageError

    try:
        return Finding(name)
    except ValueError:
        raise UsageError(f"there is no finding {name!r}", f"Choose from {', '.join(Finding)}.") from None


def _status(paper: AssessorRecord) -> dict[str, Any]:
    from fedvox_compliance.assess import must_extend
    from fedvox_compliance.assessor_record import Finding

    return {
        "schema": "fedvox.assessment-status/1",
        "clinic": paper.clinic,
        "gates": list(paper.gates),
        "drawn": list(paper.drawn),
        "open": list(paper.open_controls),
        **{kind.value: list(paper.found(kind)) for kind in Finding},
        "must_extend": must_extend(paper),
    }


def _status_text(paper: AssessorRecord) -> str:
    found = _status(paper)
    counts = ", ".join(
        f"{len(found[k])} {k.replace('_', ' ')}" for k in ("confirmed", "not_shown", "false", "open")
    )
    return f"{paper.clinic}: {counts}." + (" The sample must be extended." if found["must_extend"] else "")
