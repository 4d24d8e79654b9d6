"""Two small real data sets that scikit-learn brings, dealt to the clinics: a federation in half a second.

    breast-cancer   569 biopsies, 30 measured features, benign or malignant (Wolberg et al. 1995); logistic regression
    digits          800 of 1,797 handwritten digits of 8 × 8 pixels (Alpaydin and Kaynak 1998); softmax regression

In scenario `alike` the patients are dealt at random. In `labels` each class is spread over the clinics by a Dirichlet
distribution with α = 0.3. In `scanners` the patients are dealt at random, and the images seen by each clinic's scanner.

Breast cancer's features are standardised with the whole data set's mean and deviation, as if these were public; a real
study takes them from public data, for no noise covers them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.errors import ConfigError
from fedvox_federation.acquisition import rescan
from fedvox_federation.dp_sgd.training import Patient, Tensors
from fedvox_federation.experiment.clinics import AttestedClinic
from fedvox_federation.experiment.problem import Problem, Scenario, Site, Training
from fedvox_federation.hospitals import Cases, Hospitals, Kind, PartitionPlan, partition

TRAINING: Mapping[str, Training] = {
    "breast-cancer": Training(15, 2, 0.25, lr=0.5, lr_open=0.5, mode="hooks", at_once=1024, judged_every=3),
    "digits": Training(15, 2, 0.25, lr=2.0, lr_open=1.0, mode="hooks", at_once=1024, judged_every=3),
}
"""Learning rates chosen on seeds of their own; see `docs/compliance_experiment.md`."""
_TEST_SHARE = 0.3
_ALPHA = 0.3
_LEAST = 20
_EDGE = 8
_PATIENTS = 800  # about as many for a clinic as a small hospital contributes to a study

Float32 = npt.NDArray[np.float32]


def tabular_problem(
    task: str, scenario: Scenario, seed: int, clinics: Mapping[str, AttestedClinic]
) -> Problem:
    """A task's data dealt to the clinics.

    Args:
        task: a key of `TRAINING`.
        scenario: see the module.
        seed: of the deal, of who is tested, of scanners and of the model.
        clinics: who there is.

    Raises:
        ConfigError: scikit-learn is missing, or breast cancer's features are to be seen by scanners.
    """
    features, labels = _load(task)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:_PATIENTS])
    features, labels = features[chosen], labels[chosen]
    dealt = _deal(labels, scenario, seed, len(clinics))
    if scenario == "scanners":
        if task != "digits":
            raise ConfigError(f"{task} has no images that a scanner could change", "Use the task digits.")
        features = _rescanned(features, dealt, clinics, seed)
    classes = int(labels.max()) + 1
    inputs = torch.from_numpy(features)
    targets = torch.from_numpy(labels)
    sites = {
        name: _site(inputs, targets, rows, np.random.default_rng([seed, number]))
        for number, (name, rows) in enumerate(zip(clinics, dealt.values(), strict=True))
    }

    def build_model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Linear(features.shape[1], classes)

    return Problem(build_model, _loss, _score, sites, TRAINING[task])


def _load(task: str) -> tuple[Float32, npt.NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_breast_cancer, load_digits
    except ImportError as missing:
        raise ConfigError(
            f"{task} comes from scikit-learn, which is not installed", "pip install 'fedvox[experiment]'"
        ) from missing
    found: Any = load_breast_cancer() if task == "breast-cancer" else load_digits()
    raw = np.asarray(found.data, np.float64)
    # Of the pixels, the range is known and nothing else needed.
    scaled = raw / 16 if task == "digits" else (raw - raw.mean(0)) / raw.std(0)
    return scaled.astype(np.float32), np.asarray(found.target, np.int64)


def _deal(labels: npt.NDArray[np.int64], scenario: Scenario, seed: int, clinics: int) -> Hospitals:
    """By the same partition as a store's cases."""
    classes = tuple(int(label) for label in labels)
    names = tuple(str(row) for row in range(len(labels)))
    cases = Cases(patients=names, sources=("",) * len(labels), volumes=classes, dominant=classes)
    kind: Kind = "labels" if scenario == "labels" else "iid"
    return partition(
        cases,
        PartitionPlan(kind, clinics, seed=seed, alpha=_ALPHA, group_by="dominant", least_patients=_LEAST),
    )


def _rescanned(
    features: Float32, dealt: Hospitals, clinics: Mapping[str, AttestedClinic], seed: int
) -> Float32:
    seen = features.copy()
    for clinic, rows in zip(clinics.values(), dealt.values(), strict=True):
        for row in rows:
            image = features[row].reshape(1, 1, _EDGE, _EDGE)
            seen[row] = rescan(image, clinic.profile.scanner, np.random.default_rng([seed, row])).reshape(-1)
    return seen


def _site(inputs: Tensor, targets: Tensor, rows: Sequence[int], rng: np.random.Generator) -> Site:
    order = rng.permutation(rows)
    tested = max(1, round(_TEST_SHARE * len(rows)))
    held_out, trained = order[:tested], order[tested:]
    return Site(
        patients=[_patient(inputs[row : row + 1], targets[row : row + 1]) for row in trained],
        tests=[(inputs[row : row + 1], targets[row : row + 1]) for row in held_out],
    )


def _patient(*tensors: Tensor) -> Patient:
    return lambda: tensors


def _loss(model: nn.Module, tensors: Tensors) -> Tensor:
    return F.cross_entropy(model(tensors[0]), tensors[1])


@torch.no_grad()
def _score(model: nn.Module, tests: Sequence[Tensors]) -> list[float]:
    """1 for a patient who is classified rightly, otherwise 0."""
    inputs, targets = (torch.cat(column) for column in zip(*tests, strict=True))
    right: list[float] = (model(inputs).argmax(1) == targets).double().tolist()
    return right
