"""`fedvox lesion`: segment marked lesions, follow them, measure them, simulate patients, train networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox.commands import CommandGroup
from fedvox.commands.pretrain import (
    AsJson,
    ConfigFile,
    Overrides,
    Resume,
    ResumeChoice,
    run_training,
    show_task_plan,
)
from fedvox.config import load_config
from fedvox.errors import ConfigError
from fedvox.tracking.config import LesionConfig
from fedvox.training.config import require_lasting

if TYPE_CHECKING:
    from fedvox.tracking.segmenters import Segmenter
    from fedvox.tracking.table import Reading

_SPACES = ("voxel-zyx", "voxel-xyz", "world-ras")
_STAGES = ("rigid", "affine", "deformable")

_Method = Annotated[str, typer.Option(help="random-walker, region-growing, or carried (registration alone).")]
_Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder of a trained promptable network, instead of --method."),
]
_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for maps, tables and report.")]
_Nodes = Annotated[
    list[int] | None, typer.Option("--node", help="Id of a lesion that is a lymph node (repeatable).")
]
_Organs = Annotated[
    list[str] | None,
    typer.Option("--organ", help="ID=NAME: the organ of a lesion, for two targets an organ (repeatable)."),
]
_NonTargets = Annotated[
    list[int] | None, typer.Option("--non-target", help="Id of a lesion that is no target (repeatable).")
]
_Progressed = Annotated[
    list[int] | None,
    typer.Option("--progressed", help="Scan on which non-target disease has progressed (repeatable)."),
]
_NotEvaluable = Annotated[
    list[str] | None,
    typer.Option("--not-evaluable", help="ID@SCAN: a lesion that cannot be measured there (repeatable)."),
]
_DicomSeg = Annotated[
    bool, typer.Option("--dicom-seg", help="Also write DICOM segmentation objects (DICOM input).")
]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


def segment(
    image: Annotated[str, typer.Option("--image", "-i", help="NIfTI file or folder of a DICOM series.")],
    prompts: Annotated[str, typer.Option("--prompts", "-p", help="JSON of prompts, or a NIfTI mask.")],
    output: _Output,
    method: _Method = "random-walker",
    model: _Model = None,
    space: Annotated[
        str | None, typer.Option(help="Of JSON that does not say: voxel-zyx, voxel-xyz, world-ras.")
    ] = None,
    labels: Annotated[
        str, typer.Option(help="What a NIfTI mask holds: instance, or binary (components are lesions).")
    ] = "instance",
    node: _Nodes = None,
    dicom_seg: _DicomSeg = False,
    as_json: _Json = False,
) -> None:
    """Segments the lesions that a reader marked on one image.

    Examples:
        fedvox lesion segment -i scan.nii.gz -p prompts.json -o out

        fedvox lesion segment -i series/ -p clicks.json --space world-ras -o out --dicom-seg
    """
    from fedvox.tracking.run import segment_image
    from fedvox.tracking.table import Reading

    found = segment_image(
        image,
        prompts,
        output,
        _segmenter(method, model),
        method=model or method,
        space=_one_of("--space", space, _SPACES),
        labels=_one_of("--labels", labels, ("instance", "binary")),
        reading=Reading(nodes=node or ()),
        dicom_seg=dicom_seg,
    )
    _tell(found, output, as_json)


def track(
    series: Annotated[Path, typer.Option("--series", "-s", help="JSON of a patient's scans.")],
    output: _Output,
    method: _Method = "carried",
    model: _Model = None,
    start: Annotated[
        int | None, typer.Option("--from", help="Scan whose marks begin; default: the first with any.")
    ] = None,
    correct: Annotated[
        list[int] | None,
        typer.Option(help="Further scan whose marks rule over what is computed (repeatable)."),
    ] = None,
    detect: Annotated[bool, typer.Option("--detect", help="Look for new lesions without a prompt.")] = False,
    stage: Annotated[str, typer.Option(help="Registration: rigid, affine or deformable.")] = "deformable",
    accept_poor_registration: Annotated[
        bool, typer.Option("--accept-poor-registration", help="Follow scans that do not seem to fit.")
    ] = False,
    only: Annotated[
        int | None, typer.Option(help="Do one scan of a finished series again, by itself.")
    ] = None,
    node: _Nodes = None,
    organ: _Organs = None,
    non_target: _NonTargets = None,
    progressed: _Progressed = None,
    not_evaluable: _NotEvaluable = None,
    dicom_seg: _DicomSeg = False,
    as_json: _Json = False,
) -> None:
    """Follows lesions from the scan on which they were marked through all others, forward and backward.

    Examples:
        fedvox lesion track -s patient_001/series.json -o out

        fedvox lesion track -s series.json -o out --method region-growing --correct 2 --detect

        fedvox lesion track -s series.json -o out --only 2
    """
    from fedvox.tracking.run import TrackOptions, track_one, track_series

    options = TrackOptions(
        start=start,
        corrections=tuple(correct or ()),
        detect=detect,
        stage=_one_of("--stage", stage, _STAGES),
        accept_poor_registration=accept_poor_registration,
        reading=_reading(node, organ, non_target, progressed, not_evaluable),
        dicom_seg=dicom_seg,
    )
    segmenter = _segmenter(method, model)
    if only is not None:
        found = track_one(series, output, segmenter, options, only, method=model or method)
    else:
        found = track_series(
            series,
            output,
            segmenter,
            options,
            method=model or method,
            on_step=lambda index: print(f"scan {index} done", file=sys.stderr),
        )
    _tell(found, output, as_json)


def table(
    series: Annotated[Path, typer.Option("--series", "-s", help="JSON of scans that all have a mask.")],
    output: _Output,
    node: _Nodes = None,
    organ: _Organs = None,
    non_target: _NonTargets = None,
    progressed: _Progressed = None,
    not_evaluable: _NotEvaluable = None,
    as_json: _Json = False,
) -> None:
    """Measures masks that exist, in which the same id is the same lesion: tables, RECIST 1.1, report.

    Examples:
        fedvox lesion table -s patient_001/series.json -o out

        fedvox lesion table -s series.json -o out --organ 1=liver --organ 2=liver --non-target 3 --not-evaluable 1@2
    """
    from fedvox.tracking.run import measure_series

    reading = _reading(node, organ, non_target, progressed, not_evaluable)
    _tell(measure_series(series, output, reading=reading), output, as_json)


def simulate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the data set.")],
    patients: Annotated[int, typer.Option(min=1, help="Patients.")] = 4,
    visits: Annotated[int, typer.Option(min=1, help="Scans of each.")] = 3,
    kind: Annotated[
        list[str] | None, typer.Option(help="Kind of lesion (repeatable); default: all kinds.")
    ] = None,
    resolution_mm: Annotated[float, typer.Option(help="In-plane voxel size, 1 to 4.")] = 2.0,
    same_scanner: Annotated[
        bool, typer.Option("--same-scanner", help="No visit changes the scanner.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: _Json = False,
) -> None:
    """Writes simulated patients with lesions in the MNI152 brain, visit by visit, with the exact truth.

    Run again, it goes on where it stopped. The same options give the same data set.

    Examples:
        fedvox lesion simulate -o lesions --patients 2 --visits 3
    """
    from fedvox.tracking.lesion_types import LESION_TYPES
    from fedvox.tracking.synthetic_series import SeriesOptions, write_series_dataset

    options = SeriesOptions(
        patients=patients,
        visits=visits,
        resolution_mm=resolution_mm,
        scanner_changes=not same_scanner,
        kinds=tuple(kind or LESION_TYPES),
        seed=seed,
    )
    folder = write_series_dataset(output, options)
    found = {"patients": patients, "scans": patients * visits, "output": str(folder)}
    print(json.dumps(found) if as_json else f"{patients} patients with {visits} scans each in {folder}")


def pretrain(
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: ResumeChoice = Resume.auto,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, and train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Trains a promptable network on pooled lesion data sets, simulated lesions or both. Run again, it goes on.

    Examples:
        fedvox lesion pretrain --config jobs/configs/lesion_demo.yaml

        ray job submit --working-dir . -- python jobs/lesion_pretrain.py --config jobs/configs/lesion_demo.yaml
    """
    settings = load_config(LesionConfig, config, set_ or [])
    require_lasting(settings.storage, "storage")
    if dry_run:
        from fedvox.tracking.estimate import describe, estimate

        show_task_plan(settings, estimate(settings), describe, as_json)
        return
    from fedvox.tracking import lesion_training

    run_training(settings, resume, as_json, _summary, lesion_training)


def _summary(uri: str, outcome: dict[str, Any]) -> str:
    scores = [f"  {name:<16} {value:.3f}" for name, value in outcome.items() if name.startswith("dice")]
    ends = [f"model        {uri}/final", f"curves       {uri}/figures/curves.png"]
    return "\n".join([f"finished at step {outcome['step']}", *scores, *ends])


lesion = CommandGroup(
    """Lesions: segment what is marked, follow it through later scans, measure it (RECIST 1.1).

    Examples:
        fedvox lesion track -s patient_001/series.json -o out
    """,
    (segment, track, table, simulate, pretrain),
)


def _segmenter(method: str, model: str | None) -> Segmenter:
    if model is not None:
        from fedvox.tracking.network import load_segmenter

        return load_segmenter(model)
    from fedvox.tracking.segmenters import build_segmenter

    return build_segmenter(method)


def _reading(
    nodes: list[int] | None,
    organs: list[str] | None,
    non_targets: list[int] | None,
    progressed: list[int] | None,
    not_evaluable: list[str] | None,
) -> Reading:
    from fedvox.tracking.table import Reading

    names = [_pair("--organ", text, "=") for text in organs or ()]
    places = [_pair("--not-evaluable", text, "@") for text in not_evaluable or ()]
    for _, scan in places:
        if not scan.isdigit():
            raise ConfigError(f"--not-evaluable: {scan!r} is no scan", "Write ID@SCAN, for example 3@2.")
    return Reading(
        nodes or (),
        dict(names),
        non_targets or (),
        progressed or (),
        [(lesion, int(scan)) for lesion, scan in places],
    )


def _pair(option: str, text: str, sign: str) -> tuple[int, str]:
    lesion, found, rest = text.partition(sign)
    if not found or not lesion.strip().isdigit() or not rest.strip():
        raise ConfigError(f"{option} {text!r} is not understood", f"Write ID{sign}…, for example 3{sign}2.")
    return int(lesion), rest.strip()


def _one_of(option: str, value: str | None, known: tuple[str, ...]) -> Any:
    if value is not None and value not in known:
        raise ConfigError(f"{option} {value!r} is not known", f"Use one of {', '.join(known)}.")
    return value


def _tell(found: dict[str, Any], output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    print(f"lesions    {found['lesions']}")
    if found.get("not_found"):
        print(f"not found  {', '.join(map(str, found['not_found']))}")
    for index, (response, rule) in enumerate(
        zip(found.get("responses", []), found.get("rules", []), strict=True)
    ):
        print(f"scan {index:<5} {response}: {rule}")
    print(f"report     {output / 'report.html'}")
