"""`fedvox curate serve | people | export-task | import-edit`: review in a browser, or edit in another program."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.errors import ConfigError

if TYPE_CHECKING:
    from fedvox.curation.exchange.bring_back import Edit

_ROLES = ("reader", "reviewer", "lead")

_Store = Annotated[str, typer.Argument(help="Folder of the label store.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
_Role = Annotated[str, typer.Option(help="reader looks, reviewer decides, lead also rolls back and admits.")]


def serve(
    store: _Store,
    person: Annotated[
        str | None, typer.Option("--as", help="Admit this person with a new token, in the printed address.")
    ] = None,
    role: _Role = "reviewer",
    host: Annotated[
        str, typer.Option(help="IP address; others than loopback need a certificate.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 0,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file, for another host than loopback.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    lease_minutes: Annotated[
        float, typer.Option(min=5, help="For how long a case that was handed out is kept for that person.")
    ] = 30.0,
) -> None:
    """Serves the review page: three linked planes, findings, versions, decisions; keyboard driven.

    Whoever opens it signs in with their token (`fedvox curate people`).

    Examples:
        fedvox curate serve curation --as "Dr. Okafor"

        fedvox curate serve curation --host 10.0.0.5 --port 8443 --certificate cert.pem --key key.pem
    """
    from fedvox.curation.review.launch import Address
    from fedvox.curation.review.launch import serve as serve_page
    from fedvox.curation.store import LabelStore

    _check_role(role)
    address = Address(host, port, certificate, key)
    serve_page(LabelStore.open(store), address, person=person, role=role, lease_s=60 * lease_minutes)


def people(
    store: _Store,
    admit: Annotated[
        str | None, typer.Option(help="Admit this person, or give a new role and token.")
    ] = None,
    role: _Role = "reviewer",
    dismiss: Annotated[str | None, typer.Option(help="Make this person's token useless, at once.")] = None,
    actor: Annotated[str, typer.Option("--by", help="Who does it, for the log.")] = "command line",
    as_json: _Json = False,
) -> None:
    """Lists who may look or decide; admits and dismisses. A token is shown once and kept as a hash.

    Examples:
        fedvox curate people curation

        fedvox curate people curation --admit "Dr. Okafor" --role reviewer --by "Dr. Meyer"
    """
    from fedvox.curation.store import LabelStore

    _check_role(role)
    opened = LabelStore.open(store)
    found: dict[str, Any] = {}
    if dismiss is not None:
        opened.people.dismiss(dismiss, actor=actor)
    if admit is not None:
        found["token"] = opened.people.admit(admit, role, actor=actor)  # type: ignore[arg-type]  # checked above
    found["people"] = [{"name": one.name, "role": one.role} for one in opened.people.all()]
    if as_json:
        print(json.dumps(found))
        return
    for one in found["people"]:
        print(f"{one['role']:<9} {one['name']}")
    if admit is not None:
        print(f"token of {admit}: {found['token']}")


def export_task(
    store: _Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder of the task.")],
    case: Annotated[list[str], typer.Option("--case", "-c", help="Case to export (repeatable).")],
    version: Annotated[
        int | None,
        typer.Option(help="Version whose labels are edited (one case); default: the label of now."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Writes cases as a folder that 3D Slicer, ITK-SNAP and MONAI Label open.

    Examples:
        fedvox curate export-task curation -o task -c case_007

        fedvox curate export-task curation -o task -c case_007 --version 3
    """
    from fedvox.curation.exchange.task import Wanted
    from fedvox.curation.exchange.task import export_task as write_task
    from fedvox.curation.store import LabelStore

    if version is not None and len(case) != 1:
        raise ConfigError("--version is for one case", "Export each case with its version by itself.")
    task = write_task(LabelStore.open(store), [Wanted(one, version) for one in case], output)
    if as_json:
        print(json.dumps({"folder": str(output), "cases": [one.case_id for one in task.cases]}))
        return
    for one in task.cases:
        print(f"{one.case_id}  version {one.version}  {len(one.findings)} findings")
    print(f"edit       {output / 'labels' / 'original'}, or slicer/*.seg.nrrd")
    print(f"bring back fedvox curate import-edit {store} --task {output} --reviewer NAME")


def import_edit(
    store: _Store,
    task: Annotated[Path, typer.Option("--task", "-t", help="Folder that export-task wrote.")],
    reviewer: Annotated[str, typer.Option("--reviewer", "-r", help="Who edited.")],
    case: Annotated[str | None, typer.Option("--case", "-c", help="Only this case; default: all.")] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", "-m", help="The edited file; default: the one that changed.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time spent, each case.")] = 0.0,
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    on_top: Annotated[
        bool, typer.Option("--on-top", help="Also where somebody decided since the export.")
    ] = False,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Take a mask without a voxel.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Folder for a picture of each change (needs matplotlib).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and compare, write no version.")] = False,
    as_json: _Json = False,
) -> None:
    """Brings edited masks back: checks grid and labels, tells what changed, makes them the label.

    Examples:
        fedvox curate import-edit curation -t task -r "Dr. Okafor" --dry-run

        fedvox curate import-edit curation -t task -r "Dr. Okafor" --seconds 240 --picture changes
    """
    from fedvox.curation.exchange import bring_back
    from fedvox.curation.exchange.task import read_task
    from fedvox.curation.store import LabelStore

    opened, exported = LabelStore.open(store), read_task(task)
    wanted = [one.case_id for one in exported.cases] if case is None else [case]
    if mask is not None and len(wanted) != 1:
        raise ConfigError("--mask is for one case", "Name it with --case.")
    # All are read and checked before the first is written: a task with a bad file changes nothing.
    edits = [
        bring_back.read_edit(
            opened,
            exported,
            one,
            mask or bring_back.find_edited(task, exported.case(one)),
            allow_empty=allow_empty,
        )
        for one in wanted
    ]
    results = []
    for edit in edits:
        told = edit.to_json()
        if not dry_run:
            review = bring_back.record_edit(
                opened, edit, reviewer=reviewer, seconds=seconds, reason=reason, on_top=on_top
            )
            told["version"] = review.result
        if picture is not None:
            told["picture"] = str(picture / f"{edit.case.case_id}.png")
            bring_back.write_picture(opened, edit, Path(told["picture"]))
        results.append(told)
        if not as_json:
            _tell(edit, told)
    if as_json:
        print(json.dumps({"edits": results, "written": not dry_run}))


REVIEW_COMMANDS = (serve, people, export_task, import_edit)


def _tell(edit: Edit, told: dict[str, Any]) -> None:
    written = f"version {told['version']}" if "version" in told else "not written"
    print(f"{edit.case.case_id}  {edit.path.name}  from version {edit.parent}: {written}")
    if edit.is_stale:
        print("  somebody decided on this case since the export", file=sys.stderr)
    for change in edit.changes:
        if change.changed:
            dice = "–" if change.dice is None else f"{change.dice:.4f}"
            print(
                f"  {change.structure:<24} +{change.added_voxels} voxels ({change.added_mm3:.1f} mm³)  "
                f"-{change.removed_voxels} ({change.removed_mm3:.1f} mm³)  Dice {dice}"
            )


def _check_role(role: str) -> None:
    if role not in _ROLES:
        raise ConfigError(f"--role {role!r} is not known", f"Use one of {', '.join(_ROLES)}.")
