"""The model card of a release: what it is for, what it was trained on, how good it is, and where it ends.

Written from `model.json` alone, so that a card can never say anything else than the release itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedvox.training.release import ModelInfo

_INTENDED = (
    "Research: segmentation of the structures below, or a starting point for fine-tuning on data of your own. "
    "Not a medical device: no use for diagnosis or treatment without an evaluation on your own patients and the "
    "approvals that your jurisdiction asks for."
)
_NORMALIZATION = {
    "ct": "clipped to the training set's percentiles 0.5 and 99.5, then standardised with its mean and deviation",
    "zscore": "standardised with the mean and deviation of each case",
}


def model_card(info: ModelInfo) -> str:
    """The card in Markdown."""
    title = str(info.provenance.get("run") or info.name)
    parts = [f"# {title}", f"{info.name}, {len(info.structures) - 1} structures, {_modality(info)}."]
    parts += ["## Intended use", _INTENDED]
    parts += ["## Use it", _example(info)]
    parts += ["## Input", "\n".join(_input(info))]
    parts += ["## Structures", "\n".join(_structures(info))]
    parts += ["## Training data", "\n".join(_data(info))]
    parts += ["## Training", "\n".join(_training(info))]
    parts += ["## Limits", "\n".join(_limits(info))]
    parts += ["## Provenance", "\n".join(_provenance(info))]
    return "\n\n".join(parts) + "\n"


def _modality(info: ModelInfo) -> str:
    channels = "channel" if len(info.channel_names) == 1 else "channels"
    return f"{info.modality or 'modality not recorded'}, {channels} {', '.join(info.channel_names)}"


def _example(info: ModelInfo) -> str:
    code = (
        "```python\nfrom fedvox.training.release import load_release\n\n"
        'model, info = load_release("path/to/this/folder")\n```\n\n'
    )
    if info.channel_names[1:2] == ("point +",):  # takes prompts: see fedvox.tracking.prompts
        return (
            f"{code}or, from marks to lesions: `fedvox lesion segment --model path/to/this/folder --image scan.nii.gz "
            "--prompts prompts.json --output out`."
        )
    return (
        f"{code}or, from images to label maps: "
        "`fedvox predict --model path/to/this/folder --input images --output labels`."
    )


def _input(info: ModelInfo) -> Iterator[str]:
    yield "- orientation: (D, H, W) = (z, y, x), of volumes in RAS+"
    spacing = "each case's own" if info.spacing_mm is None else f"{_times(info.spacing_mm)} mm"
    yield f"- spacing: {spacing}"
    yield f"- patch: {_times(info.patch_size)} voxels"
    yield f"- intensities: {_NORMALIZATION.get(info.normalization, info.normalization)}"
    if info.crop_to_nonzero:
        yield "- the margin where all channels are 0 is cut off"


def _structures(info: ModelInfo) -> Iterator[str]:
    dice = info.provenance.get("dice") or {}
    yield "| label | structure | Dice on held-out cases |"
    yield "|---|---|---|"
    for value, name in enumerate(info.structures[1:], start=1):
        yield f"| {value} | {_cell(name)} | {f'{dice[name]:.4f}' if name in dice else 'not measured'} |"


def _data(info: ModelInfo) -> Iterator[str]:
    data = info.data
    if not data:
        yield "Not recorded."
        return
    yield f"- store: {data['store']}, {data['cases']:,} cases, of which {data['held_out']:,} were held out"
    yield "- sources: " + ", ".join(f"{_cell(name)} ({count:,})" for name, count in data["sources"].items())
    for label_set, names in data["label_sets"].items():
        yield f"- annotated in {_cell(label_set)}: {', '.join(map(_cell, names))}"


def _training(info: ModelInfo) -> Iterator[str]:
    training = info.training
    yield f"- steps: {info.provenance.get('step', 'not recorded')}"
    if not training:
        return
    optimizer = training["optimizer"]
    yield f"- batch: {training['global_batch_size']}; optimiser: {optimizer['name']}, lr {optimizer['lr']:g}"
    start = info.provenance.get("init_from") or info.provenance.get("pretrained")
    yield f"- started from: {start or 'scratch'}"


def _limits(info: ModelInfo) -> Iterator[str]:
    spacing = "" if info.spacing_mm is None else f" resampled to {_times(info.spacing_mm)} mm"
    yield (
        f"- It has seen {info.modality or 'its own'} images{spacing} of the sources above and nothing else: other "
        "scanners, protocols, patients and pathologies can make it fail without a sign of it."
    )
    yield "- Dice above is from held-out cases of the same sources; expect less elsewhere, and measure it."
    missing = [name for name in info.structures[1:] if name not in (info.provenance.get("dice") or {})]
    if missing:
        yield f"- Never measured: {', '.join(map(_cell, missing))}."
    yield "- How it treats age, sex, ethnicity or site differently has not been examined."


def _provenance(info: ModelInfo) -> Iterator[str]:
    for key, value in sorted(info.provenance.items()):
        if key != "dice" and value is not None:
            yield f"- {key}: {value}"
    if info.data:
        yield f"- data_sha256: {info.data['sha256']}"


def _times(values: tuple[Any, ...]) -> str:
    return " × ".join(f"{value:g}" for value in values)


def _cell(text: str) -> str:
    """Names come from data sets: nothing in them may break a table."""
    return text.replace("|", "\\|").replace("\n", " ")
