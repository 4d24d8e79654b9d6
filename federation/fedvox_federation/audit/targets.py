"""What to audit without patients at hand: two small trainings on real data or made-up volumes.

    digits         a small network on scikit-learn's handwritten digits, each image a patient
    segmentation   a small U-Net with our Dice and cross-entropy, on made-up volumes of two patches a patient

The attack does not depend on what the data are: canaries are found beside any patients. What is audited is the
trainer, with the layers and the loss that the target has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.errors import ConfigError
from fedvox_federation.audit.run import AuditTarget
from fedvox_federation.dp_sgd.training import Patient, Tensors

TARGETS = ("digits", "segmentation")
_EDGE = 8
_CLASSES = 3
_VOLUMES = 4
_DIGITS = 40


def build_target(name: str) -> AuditTarget:
    """A target by name, the same for every call.

    Raises:
        ConfigError: there is none of that name, or scikit-learn is missing.
    """
    if name not in TARGETS:
        raise ConfigError(f"there is nothing to audit named {name!r}", f"Use {', '.join(TARGETS)}.")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _digits() if name == "digits" else _segmentation()


def _digits() -> AuditTarget:
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise ConfigError(
            "the digits come from scikit-learn, which is not installed",
            "pip install 'fedvox[experiment]', or audit the target `segmentation`.",
        ) from missing
    found = load_digits()
    images = torch.as_tensor(found.data[:_DIGITS] / 16, dtype=torch.float32)
    labels = torch.as_tensor(found.target[:_DIGITS])
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def loss(net: nn.Module, tensors: Tensors) -> Tensor:
        return F.cross_entropy(net(tensors[0]), tensors[1])

    return AuditTarget(model, loss, [_given(i[None], k[None]) for i, k in zip(images, labels, strict=True)])


def _segmentation() -> AuditTarget:
    from fedvox.models.registry import build_model
    from fedvox.training.loss import DiceCrossEntropy

    model = build_model(
        "plain-unet",
        in_channels=1,
        classes=_CLASSES,
        deep_supervision=False,
        features=(6, 12),
        blocks=(1, 1),
        decoder_convs=(1,),
    )
    criterion = DiceCrossEntropy()

    def loss(net: nn.Module, tensors: Tensors) -> Tensor:
        images, labels = tensors
        annotated = torch.ones(len(images), _CLASSES, dtype=torch.bool)
        value: Tensor = criterion(net(images), labels, annotated)
        return value

    size = (2, 1, _EDGE, _EDGE, _EDGE)
    patients = [_given(torch.randn(size), torch.randint(0, _CLASSES, size)) for _ in range(_VOLUMES)]
    return AuditTarget(model, loss, patients)


def _given(*tensors: Tensor) -> Patient:
    return lambda: tensors
