"""Training a promptable network: one lesion a sample, prompted by a simulated reader, corrected by its clicks.

    losses = train(network, scans, PromptTraining(steps=1000, plan=PatchPlan((64, 64, 64))))

Every lesion counts the same, however large it is and however many its scan has. Sample i is a function of seed and i,
so that a run can go on at any step. Some samples carry a mask to healthy tissue, where the right answer is nothing: by
them the network learns that a lesion can vanish. In some steps the network is asked first, and a simulated reader
corrects what it said.

Plain functions on tensors: no Ray, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedvox.errors import DataError
from fedvox.models.backbone import Backbone
from fedvox.tracking.network import network_input
from fedvox.tracking.patches import Patch, PatchPlan
from fedvox.tracking.prompt_simulation import (
    KINDS,
    Jitter,
    PromptKind,
    simulate_correction,
    simulate_prompt,
)
from fedvox.tracking.prompts import Mask, Prompt
from fedvox.training.config import OptimizerSection
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from fedvox.training.step import train_step

_TAG = 0x6C6573696F6E  # keeps these random streams apart from others of the same seed
_FAR = 0.15  # largest offset of a patch's middle from the prompts', as a share of the patch


@dataclass(frozen=True, eq=False)
class TrainingScan:
    """A scan with its lesions.

    Args:
        image: (D, H, W).
        lesions: (D, H, W) ids.
        spacing_mm: (D, H, W).
    """

    image: npt.NDArray[np.generic]
    lesions: npt.NDArray[np.integer]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class PromptTraining:
    """How a network is trained.

    Args:
        steps: of the whole run.
        plan: patches.
        batch_size: samples a step.
        kinds: of prompts, equally often.
        empty_share: of samples whose mask was carried to healthy tissue.
        corrected_share: of steps in which a reader corrects the network first.
        corrections: most clicks of such a reader.
        jitter: of the reader's hand.
        optimizer: section.
        seed: of all samples.
    """

    steps: int
    plan: PatchPlan
    batch_size: int = 2
    kinds: tuple[PromptKind, ...] = KINDS
    empty_share: float = 0.1
    corrected_share: float = 0.3
    corrections: int = 3
    jitter: Jitter = field(default_factory=Jitter)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Sample:
    """One lesion with its prompts.

    Args:
        scan: that it is of.
        lesion: bool (D, H, W) on the scan's grid; empty where the mask was carried to healthy tissue.
        prompts: on the scan's grid.
        patch: that the network sees.
    """

    scan: TrainingScan
    lesion: npt.NDArray[np.bool_]
    prompts: tuple[Prompt, ...]
    patch: Patch


@dataclass(eq=False)
class PromptBatch:
    """A batch as `fedvox.training.step` wants it.

    Args:
        image: (B, 8, D, H, W) float32.
        label: (B, 1, D, H, W) int64.
        annotated: (B, 2) bool, all true.
    """

    image: Tensor
    label: Tensor
    annotated: Tensor


def lesion_list(scans: Sequence[TrainingScan]) -> list[tuple[int, int]]:
    """(scan, lesion id) of every lesion.

    Raises:
        DataError: there is none.
    """
    found = [(i, int(lesion)) for i, s in enumerate(scans) for lesion in np.unique(s.lesions) if lesion]
    if not found:
        raise DataError(
            "no scan has a lesion to train on", "Give scans with lesion masks.", code="empty_prompt"
        )
    return found


def draw_sample(
    scans: Sequence[TrainingScan], lesions: Sequence[tuple[int, int]], config: PromptTraining, index: int
) -> Sample:
    """Sample `index` of a run.

    Args:
        scans: to train on.
        lesions: of `lesion_list`.
        config: of the run.
        index: from 0.
    """
    rng = np.random.Generator(np.random.Philox(key=[config.seed, _TAG], counter=[0, 0, 0, index]))
    number, lesion = lesions[int(rng.integers(len(lesions)))]
    scan = scans[number]
    mask = np.asarray(scan.lesions == lesion)
    if rng.random() < config.empty_share:
        moved = _carried_away(mask, scan.lesions > 0, rng)
        if moved is not None:
            return _sample(scan, np.zeros_like(mask), (Mask(moved),), config, rng)
    kind = config.kinds[int(rng.integers(len(config.kinds)))]
    prompt = simulate_prompt(mask, kind, scan.spacing_mm, rng, config.jitter)
    return _sample(scan, mask, (prompt,), config, rng)


def _sample(
    scan: TrainingScan,
    mask: npt.NDArray[np.bool_],
    prompts: tuple[Prompt, ...],
    config: PromptTraining,
    rng: np.random.Generator,
) -> Sample:
    offset = rng.uniform(-_FAR, _FAR, 3).tolist()
    patch = Patch.around(prompts, scan.image.shape, scan.spacing_mm, config.plan, offset)
    return Sample(scan, mask, prompts, patch)


def _carried_away(
    mask: npt.NDArray[np.bool_], taken: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.bool_] | None:
    """The mask at a place of the scan that no lesion touches; None where a few tries find none."""
    voxels = np.argwhere(mask)
    low, high = voxels.min(0), voxels.max(0)
    for _ in range(10):
        start = rng.integers(0, np.maximum(np.array(mask.shape) - (high - low), 1))
        moved = np.zeros_like(mask)
        moved[tuple((voxels - low + start).T)] = True
        if not (moved & taken).any():
            return moved
    return None


def collate(samples: Sequence[Sample]) -> PromptBatch:
    """Samples as one batch."""
    image = torch.stack(
        [network_input(s.patch.image(s.scan.image), s.patch.prompts(s.prompts)) for s in samples]
    )
    label = torch.stack([torch.from_numpy(s.patch.mask(s.lesion).astype(np.int64))[None] for s in samples])
    return PromptBatch(image, label, torch.ones(len(samples), 2, dtype=torch.bool))


@torch.no_grad()
def corrected_samples(
    network: Backbone, samples: Sequence[Sample], config: PromptTraining, step: int
) -> list[Sample]:
    """The samples with clicks of a reader who sees what the network says; their number is drawn a step.

    Args:
        network: in any mode; it is asked in evaluation mode and left as it was.
        samples: of this step.
        config: of the run.
        step: from 0.
    """
    rng = np.random.Generator(np.random.Philox(key=[config.seed, _TAG + 1], counter=[0, 0, 0, step]))
    was_training = network.training
    network.eval()
    found = list(samples)
    for round_ in range(1, int(rng.integers(1, config.corrections + 1)) + 1):
        device = next(network.parameters()).device
        probability = network(collate(found).image.to(device)).float().softmax(1)[:, 1].cpu().numpy()
        for index, sample in enumerate(found):
            said = sample.patch.whole(probability[index])
            inside = sample.patch.whole(np.ones(sample.patch.plan.size, dtype=np.float32))
            click = simulate_correction(
                sample.lesion & inside, said, sample.scan.spacing_mm, round_, rng, config.jitter
            )
            if click is not None:
                found[index] = Sample(sample.scan, sample.lesion, (*sample.prompts, click), sample.patch)
    network.train(was_training)
    return found


def train(
    network: Backbone,
    scans: Sequence[TrainingScan],
    config: PromptTraining,
    *,
    on_step: Callable[[int, float], None] = lambda *_: None,
) -> list[float]:
    """Trains a network in place, from step 0 to the end.

    Args:
        network: of `promptable`, on the device where it shall be trained.
        scans: to train on.
        config: how.
        on_step: told step and loss.

    Returns:
        The loss of every step.

    Raises:
        DataError: no scan has a lesion.
    """
    lesions = lesion_list(scans)
    loss = DeepSupervision(DiceCrossEntropy())
    optimizer = build_optimizer(config.optimizer, network)
    device = next(network.parameters()).device
    losses = []
    network.train()
    for step in range(config.steps):
        first = step * config.batch_size
        samples = [draw_sample(scans, lesions, config, first + i) for i in range(config.batch_size)]
        coin = np.random.Generator(np.random.Philox(key=[config.seed, _TAG + 2], counter=[0, 0, 0, step]))
        if coin.random() < config.corrected_share:
            samples = corrected_samples(network, samples, config, step)
        batch = collate(samples)
        moved = PromptBatch(batch.image.to(device), batch.label.to(device), batch.annotated.to(device))
        set_learning_rate(optimizer, learning_rate(config.optimizer, step, config.steps))
        result = train_step(network, moved, loss, optimizer, grad_clip=config.optimizer.grad_clip)
        losses.append(float(result.loss))
        on_step(step, losses[-1])
    network.eval()
    return losses
