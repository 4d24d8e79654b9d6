"""`fedvox curate` and `jobs/curate_round.py`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.commands import CommandGroup
from fedvox.commands.curate_decisions import DECISIONS
from fedvox.commands.curate_output import short, show
from fedvox.commands.curate_review import REVIEW_COMMANDS
from fedvox.commands.pretrain import AsJson, ConfigFile, DryRun, Overrides
from fedvox.config import load_config, to_yaml
from fedvox.curation.cycle.config import CurateConfig
from fedvox.errors import ConfigError

if TYPE_CHECKING:
    pass

_Store = Annotated[str, typer.Argument(help="Folder of the label store.")]
_CaseId = Annotated[str, typer.Argument(help="Name of the case.")]


def create(
    store: Annotated[str, typer.Argument(help="Folder of the new label store.")],
    images: Annotated[
        str, typer.Option("--images", "-i", help="Brick store of images, with labels or without.")
    ],
    gold: Annotated[
        list[str] | None,
        typer.Option(help="Case of the frozen gold set (repeatable), or @FILE with one a line."),
    ] = None,
    database: Annotated[
        str, typer.Option(help="sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME.")
    ] = "sqlite:///curation.db",
    actor: Annotated[str, typer.Option("--by", help="Who does it, for the log.")] = "command line",
    as_json: AsJson = False,
) -> None:
    """Makes a label store of a brick store; the labels that it has become version 1 of each case.

    Run again, it goes on where it stopped.

    Examples:
        fedvox curate create curation --images stores/abdomen --gold @gold.txt
    """
    from fedvox.curation.cycle.collection import create_collection

    names = [name for entry in gold or [] for name in _names(entry)]
    made = create_collection(
        store, images, gold=names, database=database, actor=actor, on_case=_progress("cases")
    )
    found = {"cases": len(made.cases()), "gold": len(made.cases(gold=True)), "labelled": len(made.heads())}
    show(found, as_json)


def status(store: _Store, as_json: AsJson = False) -> None:
    """Shows where a collection stands: cases, round, steps, queue.

    Examples:
        fedvox curate status curation
    """
    from fedvox.curation.store import LabelStore

    opened = LabelStore.open(store)
    number = opened.rounds.current
    steps = ("models", "propose", "check", "queue", "retrain", "gate", "report")
    found = {
        "cases": len(opened.cases(gold=False)),
        "gold": len(opened.cases(gold=True)),
        "labelled": len(opened.heads()),
        "round": number,
        "steps_done": [step for step in steps if opened.rounds.step(number, step) is not None],
        "queue": opened.queue.counts(),
        "reviews": len(opened.reviews()),
        "garbage_masks": len(opened.garbage()),
        "missing_masks": len(opened.missing_masks()),
    }
    show(found, as_json)


def versions(store: _Store, case: _CaseId, as_json: AsJson = False) -> None:
    """Lists the versions of a case's label: who made each, when, from what, and why.

    Examples:
        fedvox curate versions curation case_007
    """
    from fedvox.curation.store import LabelStore

    opened = LabelStore.open(store)
    head = opened.case(case).head
    found = opened.versions(case)
    if as_json:
        print(json.dumps({"head": head, "versions": [asdict(version) for version in found]}))
        return
    for version in found:
        mark = "*" if version.number == head else " "
        by = f"{version.source.kind} {version.source.name}"
        print(
            f"{mark}{version.number:>4}  round {version.round:<3} {version.created[:19]}  {by}  {version.reason}"
        )


def findings(
    store: _Store,
    case: Annotated[str | None, typer.Option("--case", "-c", help="Only of this case.")] = None,
    round_: Annotated[int | None, typer.Option("--round", help="Of this round; default: the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists what the checks found, with the evidence.

    Examples:
        fedvox curate findings curation --case case_007 --json
    """
    from fedvox.curation.store import LabelStore

    opened = LabelStore.open(store)
    found = opened.findings.of(round=opened.rounds.current if round_ is None else round_, case_id=case)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
        return
    for finding in found:
        evidence = ", ".join(f"{key} {short(value)}" for key, value in finding.evidence.items())
        print(f"{finding.severity:.2f}  {finding.case_id}  {finding.structure}: {finding.rule}  {evidence}")


def rounds(store: _Store, as_json: AsJson = False) -> None:
    """Lists the rounds: what was reviewed, found, and what it did for the models.

    Examples:
        fedvox curate rounds curation
    """
    from fedvox.curation.store import LabelStore

    opened = LabelStore.open(store)
    found: list[dict[str, Any]] = [
        {"round": one.number, "created": one.created, "closed": one.closed,
         "report": opened.rounds.step(one.number, "report")}
        for one in opened.rounds.all()
    ]  # fmt: skip
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        report = one["report"] or {}
        queued = (report.get("detection") or {}).get("queued") or {}
        dice = (report.get("gate") or {}).get("dice") or {}
        print(
            f"round {one['round']}  {'closed' if one['closed'] else 'open'}"
            + (f"  reviewed {report['reviewed']} of {report['cases']}" if report else "")
            + (f"  errors {queued['hits']} of {queued['trials']} queued" if queued else "")
            + (f"  gold Dice {dice['before']:.4f} -> {dice['after']:.4f}" if dice else "")
        )


def export(
    store: _Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder, such as Dataset012_Liver.")],
    round_: Annotated[
        int | None, typer.Option("--round", help="Labels at its end; default: as they are now.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Writes images and labels of a round as nnU-Net raw, with the provenance of every label.

    Examples:
        fedvox curate export curation -o Dataset012_Liver --round 2
    """
    from fedvox.curation.cycle.export import export_round
    from fedvox.curation.store import LabelStore

    show(export_round(LabelStore.open(store), output, round_, on_case=_progress("cases")), as_json)


def import_masks(
    store: _Store,
    folder: Annotated[Path, typer.Option("--folder", "-f", help="Holds CASE.nii.gz for any of the cases.")],
    name: Annotated[str, typer.Option(help="Of the tool that made them; named in propose.imported.")],
    as_json: AsJson = False,
) -> None:
    """Adds masks of another tool as proposals: TotalSegmentator's, say, or those of `fedvox predict`.

    Examples:
        fedvox curate import-masks curation --folder predictions --name totalsegmentator
    """
    from fedvox.curation.cycle.mask_files import import_folder
    from fedvox.curation.store import LabelStore

    show(import_folder(LabelStore.open(store), folder, name, on_case=_progress("masks")), as_json)


def audit(
    store: _Store,
    case: Annotated[str | None, typer.Option("--case", "-c", help="Only of this case.")] = None,
    last: Annotated[int, typer.Option(min=1, help="So many lines, the newest.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Verifies the audit log's chain of hashes, and shows its newest lines.

    Examples:
        fedvox curate audit curation --case case_007
    """
    from fedvox.curation.store import LabelStore

    opened = LabelStore.open(store)
    count = opened.audit.verify()
    entries = opened.audit.entries(case, last=last)
    if as_json:
        print(json.dumps({"lines": count, "entries": [asdict(entry) for entry in entries]}))
        return
    for entry in entries:
        details = " ".join(f"{key}={value}" for key, value in entry.details.items())
        print(
            f"{entry.sequence:>6} {entry.created[:19]} {entry.actor} {entry.action} {entry.case_id} {details}"
        )
    print(f"the chain of all {count} lines is whole")


def clean(
    store: _Store,
    min_age_hours: Annotated[
        float, typer.Option(min=0, help="Younger files may be about to be named.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Deletes masks that no version names: what processes left that were killed while writing.

    Examples:
        fedvox curate clean curation
    """
    from fedvox.curation.store import LabelStore

    deleted = LabelStore.open(store).collect_garbage(actor="command line", min_age_s=3600 * min_age_hours)
    show({"deleted": deleted}, as_json)


def run(
    config: ConfigFile = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Does all of the cycle that needs no person, until the queue waits for people or the round is closed.

    The first call trains or takes the models, proposes, checks and fills the queue; called after the review, it
    retrains, judges the models on the gold set and writes the round's report; called again, it begins the next round.
    A run that was killed goes on where it was.

    Examples:
        fedvox curate run --config jobs/configs/curate_demo.yaml

        ray job submit --working-dir . -- python jobs/curate_round.py --config jobs/configs/curate_demo.yaml
    """
    found = load_config(CurateConfig, config, set_ or [])
    if dry_run:
        print(to_yaml(found))
        return
    curate_round(found, as_json)


def curate_round(config: CurateConfig, as_json: bool) -> None:
    """Advances the cycle once and tells where it stands."""
    from fedvox.curation.cycle.rounds import Cycle
    from fedvox.curation.store import LabelStore
    from fedvox.training.config import expand
    from fedvox.training.ray_shell import run as train

    opened = LabelStore.open(expand(config.store))
    cycle = Cycle(
        config,
        opened,
        train,
        tell=lambda text: print(text, file=sys.stderr),
        on_case=_progress("cases proposed"),
    )
    show(asdict(cycle.advance()), as_json)


curate = CommandGroup(
    """Curation: models propose, checks find what is wrong, people look at what matters, models retrain.

    Examples:
        fedvox curate create curation --images stores/abdomen --gold @gold.txt

        fedvox curate run --config curation.yaml
    """,
    (
        create, status, run, findings, *DECISIONS, versions, rounds, export, import_masks,
        audit, clean, *REVIEW_COMMANDS,
    ),
)  # fmt: skip


def _names(entry: str) -> list[str]:
    if not entry.startswith("@"):
        return [entry]
    path = Path(entry[1:])
    if not path.is_file():
        raise ConfigError(f"--gold: {path} is not there", "Name a file with one case a line.")
    return path.read_text(encoding="utf-8").split()


def _progress(what: str) -> Any:
    """Tells on stderr how far it has come, every tenth."""

    def tell(done: int, total: int) -> None:
        if done == total or done % max(1, total // 10) == 0:
            print(f"{done} of {total} {what}", file=sys.stderr)

    return tell
