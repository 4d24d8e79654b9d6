"""Segmentation of MNI152 heads on the clinics' scanners, from weights that were pretrained on good scanners alone.

    FOLDER/heads.npz                192 heads: the demo's brain, each deformed at random, on a good scanner, 4 mm
    FOLDER/pretrained.safetensors   a small U-Net of slices, trained on 24 further heads, without noise: the public part

Each seed deals the heads to the clinics anew, and each clinic's scanner sees its own. The network's last layer starts
from nothing, as it does for structures that pretraining did not know. It and the normalisations are trained (91
numbers) with Dice and cross-entropy of two patches a patient; the score is the mean Dice of gray and white matter in a
test patient's middle.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from fedvox.data.demo import DemoOptions, load_brain, plan_acquisitions
from fedvox.data.simulated_scanner import Acquisition, Head, acquire, with_spacing
from fedvox.evaluation.dice import dice_counts
from fedvox.models.backbone import Backbone
from fedvox.models.registry import build_model
from fedvox.storage import locate, write_atomic
from fedvox.training.loss import DiceCrossEntropy
from fedvox_federation.acquisition import ScannerEffects, rescan
from fedvox_federation.dp_sgd.trainable import select_trainable
from fedvox_federation.dp_sgd.training import Patient, Tensors
from fedvox_federation.experiment.clinics import AttestedClinic
from fedvox_federation.experiment.problem import Problem, Site, Training

_PATCHES = 2
TRAINING = Training(10, 3, sample_rate=0.25, lr=1.0, lr_open=1.0, at_once=_PATCHES)
PER_CLINIC, TESTED = 24, 6
_PUBLIC = 24
_CLINICS = 8
_SPACING_MM = 4.0
_BOX = (16, 40, 32)
_PATCH = (4, 24, 24)
_CLASSES = 3
_KEY = 7_000_003  # apart from the demo's seeds, and those of its new sites
_PRETRAINING_STEPS = 600
_PRETRAINING_LR = 3e-3

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


def brain_problem(folder: Path, seed: int, clinics: Mapping[str, AttestedClinic]) -> Problem:
    """The heads dealt to the clinics.

    Args:
        folder: for heads and pretrained weights, which are made if they are not there.
        seed: of the deal, of scanners and of patches.
        clinics: at most eight.

    Raises:
        ConfigError: nilearn, which brings the brain, is not installed.
    """
    images, labels = _heads(folder)
    weights = _pretrained(folder, images[:_PUBLIC], labels[:_PUBLIC])
    order = _PUBLIC + np.random.default_rng(seed).permutation(len(images) - _PUBLIC)
    sites = {
        name: _site(
            images, labels, order[n * PER_CLINIC : (n + 1) * PER_CLINIC], clinic.profile.scanner, seed
        )
        for n, (name, clinic) in enumerate(clinics.items())
    }

    def build() -> nn.Module:
        model = _network()
        model.load_state_dict(weights)
        for parameter in model.heads.parameters():
            nn.init.zeros_(parameter)
        select_trainable(model, "norm+head")
        return model

    return Problem(build, _loss, _score, sites, TRAINING)


def _network() -> Backbone:
    return build_model(
        "plain-unet",
        in_channels=1,
        classes=_CLASSES,
        deep_supervision=False,
        features=(8, 16),
        blocks=(1, 1),
        decoder_convs=(1,),
        kernel=(1, 3, 3),
        stride=(1, 2, 2),
    )


# ---- heads ---------------------------------------------------------------------------------------------------


def _heads(folder: Path) -> tuple[Float32, Labels]:
    """Images (N, *box) and labels, made once."""
    path = folder / "heads.npz"
    if not path.is_file():
        brain = with_spacing(load_brain(), (_SPACING_MM,) * 3)
        made = [_head(brain, plan) for plan in _plans()]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, images=np.stack([i for i, _ in made]), labels=np.stack([k for _, k in made])
        )
        write_atomic(locate(path), buffer.getvalue())
    with np.load(path) as held:
        return held["images"].astype(np.float32), held["labels"]


def _plans() -> list[Acquisition]:
    """The anatomy of the demo's cases, on one good scanner."""
    options = DemoOptions(cases=_PUBLIC + _CLINICS * PER_CLINIC, resolution_mm=_SPACING_MM, seed=_KEY)
    return [
        replace(plan, bias=0.05, gamma=1.0, contrast=1.0, noise=0.02, noise_kind="rician", slice_mm=_SPACING_MM,
                gain=1.0)
        for plan in plan_acquisitions(options)
    ]  # fmt: skip


def _head(brain: Head, plan: Acquisition) -> tuple[npt.NDArray[np.float16], Labels]:
    head, image = acquire(brain, plan)
    middle = tuple(
        slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(image.shape, _BOX, strict=True)
    )
    return image[middle].astype(np.float16), head.label()[middle]


def _site(
    images: Float32,
    labels: Labels,
    rows: Sequence[int] | npt.NDArray[np.intp],
    scanner: ScannerEffects,
    seed: int,
) -> Site:
    seen = [
        (_scanned(images[row], scanner, np.random.default_rng([seed, int(row)])), labels[row]) for row in rows
    ]
    rng = np.random.default_rng([seed, int(rows[0])])
    return Site(
        patients=[_patient(*_patches(image, label, rng)) for image, label in seen[TESTED:]],
        tests=[
            (torch.from_numpy(i)[None, None], torch.from_numpy(k)[None, None].long())
            for i, k in seen[:TESTED]
        ],
    )


def _scanned(image: Float32, scanner: ScannerEffects, rng: np.random.Generator) -> Float32:
    """Seen by a scanner, and normalised by its own mean and deviation."""
    seen = rescan(image[None], scanner, rng)[0]
    normal: Float32 = (seen - seen.mean()) / seen.std()
    return normal


def _patches(image: Float32, label: Labels, rng: np.random.Generator) -> Tensors:
    """(P, 1, *patch) of both, at random places."""
    starts = [
        [int(rng.integers(n - p + 1)) for n, p in zip(_BOX, _PATCH, strict=True)] for _ in range(_PATCHES)
    ]
    boxes = [tuple(slice(s, s + p) for s, p in zip(start, _PATCH, strict=True)) for start in starts]
    cut = [torch.from_numpy(np.stack([volume[box] for box in boxes])[:, None]) for volume in (image, label)]
    return cut[0], cut[1].long()


def _patient(*tensors: Tensor) -> Patient:
    return lambda: tensors


# ---- training and judging ------------------------------------------------------------------------------------


def _pretrained(folder: Path, images: Float32, labels: Labels) -> dict[str, Tensor]:
    """Weights of ordinary training on good scanners, made once."""
    path = folder / "pretrained.safetensors"
    if not path.is_file():
        write_atomic(locate(path), save_safetensors(_pretrain(images, labels)))
    return load_safetensors(path.read_bytes())


def _pretrain(images: Float32, labels: Labels) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    scanner = ScannerEffects(bias=0.1, noise=0.05)
    volumes = [_scanned(image, scanner, rng) for image in images]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PRETRAINING_LR)
    for _ in range(_PRETRAINING_STEPS):
        chosen = rng.choice(len(volumes), 2, replace=False)
        cut = [_patches(volumes[n], labels[n], rng) for n in chosen]
        batch = tuple(torch.cat(column) for column in zip(*cut, strict=True))
        optimizer.zero_grad()
        _loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.state_dict()


def _loss(model: nn.Module, tensors: Tensors) -> Tensor:
    images, labels = tensors
    annotated = torch.ones(len(images), _CLASSES, dtype=torch.bool)
    value: Tensor = DiceCrossEntropy()(model(images), labels, annotated)
    return value


@torch.no_grad()
def _score(model: nn.Module, tests: Sequence[Tensors]) -> list[float]:
    """Mean Dice of gray and white matter, for each test patient."""
    model.eval()
    scores = []
    for image, label in tests:
        predicted = model(image).argmax(1)[0]
        dice = dice_counts(label[0, 0], predicted, _CLASSES).dice()
        scores.append(float(dice[1:].mean()))
    model.train()
    return scores
