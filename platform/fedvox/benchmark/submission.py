"""What a submission is: predictions, or something that the third party runs, and what it is made of.

    submission.yaml
        name: resenc-l
        role: baseline
        predictions: {internal: predictions/internal}      # or one of these, which the third party runs:
        # command: [predict, --in, "{images}", --out, "{output}"]
        # container: {image: "team/method:1", arguments: [predict, "{images}", "{output}"]}
        # adapter: {kind: nnunet, model: nnUNetTrainer__nnUNetPlans__3d_fullres}
        method:
          architecture: residual encoder U-Net
          parameters_millions: 102
          training_cases: [case_001, case_002]             # or training_list: cases.txt
          epochs: 1000
          patch_size: [128, 128, 128]
          …
        claims: [architecture]
        compares_to: resenc-l

What is not declared counts as undeclared, and the fairness checks say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from fedvox.benchmark.adapters.contract import Adapter
from fedvox.benchmark.adapters.launch import command_of, parse_adapter, read_paths_of
from fedvox.benchmark.container import Container
from fedvox.benchmark.manifest import Name
from fedvox.config import Config, load_config
from fedvox.errors import ConfigError, DataError

FILE_NAME = "submission.yaml"
Component = Literal[
    "architecture",
    "loss",
    "augmentation",
    "optimizer",
    "training_data",
    "pretraining",
    "postprocessing",
    "ensembling",
]


class MethodCard(Config):
    """What a method is and what it cost. None means not declared.

    Attributes:
        architecture: in words.
        family: `cnn`, `transformer`, `mamba`, `hybrid` or `other`.
        residual_encoder: whether the encoder has residual blocks (they alone explain published gains).
        framework: nnU-Net 2.5, MONAI 1.4 …
        code: repository and commit, or a hash of the container.
        parameters_millions: trainable parameters.
        training_cases: ids of the training cases.
        extra_data: whether anything beyond the benchmark's training cases was used.
        pretrained: what the weights started from; "" for nothing.
        epochs: of training.
        patch_size: (D, H, W) voxels.
        batch_size: patches per step.
        spacing_mm: voxel spacing of training, (D, H, W).
        augmentation: in words.
        loss: in words.
        optimizer: in words.
        vram_gib: peak memory in training.
        gpu_hours: of training.
        hardware: the device.
        seeds: seeds or folds that were trained.
        ensemble_size: networks averaged in one prediction.
        test_time_augmentation: whether predictions of flips are averaged.
        postprocessing: in words; "" for none.
    """

    architecture: str | None = None
    family: Literal["cnn", "transformer", "mamba", "hybrid", "other"] | None = None
    residual_encoder: bool | None = None
    framework: str | None = None
    code: str | None = None
    parameters_millions: float | None = Field(None, gt=0)
    training_cases: tuple[str, ...] | None = None
    extra_data: bool | None = None
    pretrained: str | None = None
    epochs: int | None = Field(None, gt=0)
    patch_size: tuple[int, int, int] | None = None
    batch_size: int | None = Field(None, gt=0)
    spacing_mm: tuple[float, float, float] | None = None
    augmentation: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    vram_gib: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    hardware: str | None = None
    seeds: tuple[int, ...] | None = None
    ensemble_size: int | None = Field(None, ge=1)
    test_time_augmentation: bool | None = None
    postprocessing: str | None = None

    def undeclared(self) -> list[str]:
        """Fields that were left out."""
        return [name for name in type(self).model_fields if getattr(self, name) is None]


class Submission(Config):
    """One method. See the top of this module.

    Attributes:
        name: unique in the benchmark.
        team: who submits.
        role: `baseline` where it is what others are compared with.
        predictions: test set -> folder of CASE.nii.gz.
        command: run by the third party; `{images}` and `{output}` are the folders.
        container: run by the third party; see `fedvox.benchmark.container`.
        adapter: a trained model, run by the third party; see `fedvox.benchmark.adapters`.
        read_paths: folders that the command or container may read besides the system and the images: weights, code.
        method: what it is made of.
        training_list: text file with one training case a line, instead of `method.training_cases`.
        claims: components that are claimed to make it better.
        compares_to: the baseline that the claim is against.
        replicates: test set -> folders of predictions of other seeds or folds of the same method.
        waivers: check -> reason why it does not apply; the report shows it.
    """

    schema_: Literal["fedvox.submission/1"] = Field("fedvox.submission/1", alias="schema")
    name: Name
    team: str = ""
    role: Literal["method", "baseline"] = "method"
    predictions: dict[str, Path] = Field(default_factory=dict)
    command: tuple[str, ...] = ()
    container: Container | None = None
    adapter: SerializeAsAny[Adapter] | None = None
    read_paths: tuple[Path, ...] = ()
    method: MethodCard = MethodCard()
    training_list: Path | None = None
    claims: tuple[Component, ...] = ()
    compares_to: str | None = None
    replicates: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    waivers: dict[str, Annotated[str, Field(min_length=10)]] = Field(default_factory=dict)

    @field_validator("adapter", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> Any:
        try:
            return parse_adapter(value) if isinstance(value, dict) else value
        except ConfigError as error:
            raise ValueError(error.message) from error

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in ("predictions", "command", "container", "adapter") if getattr(self, name)]
        if len(given) != 1:
            found = f"not {' and '.join(given)}" if given else "none is given"
            raise ValueError(f"give one of predictions, command, container and adapter: {found}")
        if self.command and not all(
            any(p in part for part in self.command) for p in ("{images}", "{output}")
        ):
            raise ValueError("command needs {images} and {output}, where the folders are put in")
        return self

    @property
    def is_run(self) -> bool:
        """Whether the third party runs it, rather than being given predictions."""
        return not self.predictions

    def runs(self) -> tuple[str, ...]:
        """The command that the sandbox runs; empty for a container."""
        return command_of(self.adapter) if self.adapter is not None else self.command

    def reads(self) -> tuple[Path, ...]:
        """What that may read besides the system and the images."""
        return (*self.read_paths, *(read_paths_of(self.adapter) if self.adapter is not None else ()))


def load_submission(path: Path | str) -> Submission:
    """Read a submission's manifest; its paths become absolute.

    Args:
        path: the folder, or the YAML file itself.

    Raises:
        ConfigError: the manifest is missing or not usable; all problems are named.
        DataError: the list of training cases is missing.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    found = load_config(Submission, path)
    folder = path.resolve().parent
    method = found.method
    if found.training_list is not None:
        listed = folder / found.training_list
        if not listed.is_file():
            raise DataError(f"{listed} does not exist", "Correct `training_list`: one training case a line.")
        lines = (line.strip() for line in listed.read_text(encoding="utf-8").splitlines())
        method = method.model_copy(update={"training_cases": tuple(line for line in lines if line)})
    return found.model_copy(
        update={
            "predictions": {name: _absolute(folder, p) for name, p in found.predictions.items()},
            "replicates": {n: tuple(_absolute(folder, p) for p in ps) for n, ps in found.replicates.items()},
            "read_paths": tuple(_absolute(folder, p) for p in found.read_paths),
            "container": None if found.container is None else found.container.located(folder),
            "adapter": None if found.adapter is None else found.adapter.located(folder),
            "method": method,
        }
    )


def _absolute(folder: Path, path: Path) -> Path:
    return (folder / path.expanduser()).resolve()
