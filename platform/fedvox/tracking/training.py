"""How a promptable network learns: one lesion a sample, prompted by a simulated reader, corrected by its clicks.

    samples = [draw_sample(source, prompts, plan, seed, i) for i in indices]
    loss = prompt_loss(network, samples, loss_fn)                          # one scan
    loss = follow_up_loss(network, draw_follow_ups(...), loss_fn)          # two scans, through the propagation

Every lesion counts the same, however large it is and however many its scan has. Sample i is a function of seed and i,
so that a run can go on at any step. Some samples carry a mask to healthy tissue, where the right answer is nothing: by
them the network learns that a lesion can vanish. In some steps the network is asked first, and a simulated reader
corrects what it said.

In steps on two scans the network segments the lesion on the first, from a prompt; its answer is warped to the later
scan and enters there as the mask prompt; both answers are judged, and the gradient of the second flows through the warp
into the first. What the network sees is a mask as in tracking, 0 or 1; the gradient takes it for the probability.

Plain functions on tensors: no Ray, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.tracking.config import PromptSection
from fedvox.tracking.examples import Example, ExampleSource, TrainingScan
from fedvox.tracking.network import lesion_probability, with_prior
from fedvox.tracking.patches import Patch, PatchPlan
from fedvox.tracking.prompt_simulation import Jitter, simulate_correction, simulate_prompt
from fedvox.tracking.prompts import CHANNELS, Mask, Prompt, PromptEncoding
from fedvox.tracking.walker import walker_channel

BoolVolume = npt.NDArray[np.bool_]

_TAG = 0x6C6573696F6E  # keeps these random streams apart from others of the same seed
_FAR = 0.15  # largest offset of a patch's middle from the prompts', as a share of the patch
_READER = Jitter()
_MASK = CHANNELS.index("mask")


@dataclass(frozen=True, eq=False)
class Sample:
    """One lesion with its prompts.

    Args:
        scan: that it is of.
        target: bool (D, H, W) on the scan's grid; empty where the mask was carried to healthy tissue.
        prompts: on the scan's grid.
        patch: that the network sees.
    """

    scan: TrainingScan
    target: BoolVolume
    prompts: tuple[Prompt, ...]
    patch: Patch


@dataclass(frozen=True, eq=False)
class FollowUpSample:
    """One lesion on two scans.

    Args:
        first: as it is marked.
        later: with no prompt of its own; its patch lies where the lesion is carried to.
    """

    first: Sample
    later: Sample


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The generator of one sample or step, for one purpose."""
    return np.random.Generator(np.random.Philox(key=[seed, _TAG + purpose], counter=[0, 0, 0, index]))


# ---- samples -------------------------------------------------------------------------------------------------


def draw_sample(
    source: ExampleSource, prompts: PromptSection, plan: PatchPlan, seed: int, index: int
) -> Sample:
    """Sample `index` of a run, on one scan; of a lesion with a later scan, either.

    Args:
        source: of lesions.
        prompts: what readers mark.
        plan: of patches.
        seed: of the run.
        index: from 0.
    """
    rng = stream(seed, index, 0)
    return sample_of(source.example(index), prompts, plan, rng)


def sample_of(example: Example, prompts: PromptSection, plan: PatchPlan, rng: np.random.Generator) -> Sample:
    """A sample on one of the example's scans; see `draw_sample`."""
    scan, lesion = example.scan, np.asarray(example.scan.lesions == example.lesion)
    later = example.later
    if later is not None and rng.random() < 0.5 and later.lesion.any():
        scan, lesion = later.scan, later.lesion
    if "mask" in prompts.kinds and rng.random() < prompts.empty_share:
        moved = _carried_away(lesion, scan.lesions > 0, rng)
        if moved is not None:
            return _placed(scan, np.zeros_like(lesion), (Mask(moved),), prompts, plan, rng)
    kind = prompts.kinds[int(rng.integers(len(prompts.kinds)))]
    prompt = simulate_prompt(lesion, kind, scan.spacing_mm, rng, _READER)
    return _placed(scan, lesion, (prompt,), prompts, plan, rng)


def _placed(
    scan: TrainingScan,
    lesion: BoolVolume,
    marked: tuple[Prompt, ...],
    prompts: PromptSection,
    plan: PatchPlan,
    rng: np.random.Generator,
) -> Sample:
    offset = rng.uniform(-_FAR, _FAR, 3).tolist() if prompts.dense else (0.0, 0.0, 0.0)
    patch = Patch.around(marked, scan.image.shape, scan.spacing_mm, plan, offset)
    return Sample(scan, np.asarray(scan.lesions > 0) if prompts.target == "all" else lesion, marked, patch)


def _carried_away(mask: BoolVolume, taken: BoolVolume, rng: np.random.Generator) -> BoolVolume | None:
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


def draw_follow_up(
    source: ExampleSource, prompts: PromptSection, plan: PatchPlan, seed: int, index: int
) -> FollowUpSample | None:
    """Sample `index` of a run, on two scans; None where the lesion has no later one. Arguments as for `draw_sample`."""
    return follow_up_of(source.example(index), prompts, plan, stream(seed, index, 1))


def follow_up_of(
    example: Example, prompts: PromptSection, plan: PatchPlan, rng: np.random.Generator
) -> FollowUpSample | None:
    """A sample on both of the example's scans; see `draw_follow_up`."""
    scan, later = example.scan, example.later
    if later is None:
        return None
    lesion = np.asarray(scan.lesions == example.lesion)
    kind = prompts.kinds[int(rng.integers(len(prompts.kinds)))]
    prompt = simulate_prompt(lesion, kind, scan.spacing_mm, rng, _READER)
    first = _placed(scan, lesion, (prompt,), prompts, plan, rng)
    carried = on_grid(lesion, later.scan)
    where = (Mask(carried if carried.any() else np.ones_like(carried)),)
    second = _placed(later.scan, later.lesion, where, prompts, plan, rng)
    return FollowUpSample(first, Sample(second.scan, second.target, (), second.patch))


def on_grid(mask: BoolVolume, scan: TrainingScan) -> BoolVolume:
    """A mask on the grid of another scan of the same box, by nearest neighbour."""
    index = [
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
        for n, m in zip(scan.image.shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*index)]


# ---- batches -------------------------------------------------------------------------------------------------


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """What the network sees of samples, and what it should say.

    Returns:
        (B, 9, D, H, W) float32 and (B, 1, D, H, W) int64.
    """
    seen = [s.patch.seen(s.scan.image, s.prompts) for s in samples]
    said = [s.patch.mask(s.target).astype(np.int64)[None] for s in samples]
    return torch.from_numpy(np.stack(seen)), torch.from_numpy(np.stack(said))


def prompt_loss(network: nn.Module, samples: Sequence[Sample], loss_fn: nn.Module) -> Tensor:
    """The loss on one scan a sample.

    Args:
        network: (B, 9, D, H, W) to logits; perhaps wrapped in DDP.
        samples: B of them.
        loss_fn: `(outputs, label, annotated) -> scalar`.
    """
    image, label = collate(samples)
    return _judged(network, image, label, samples[0].patch.plan.encoding, loss_fn)[0]


def _judged(
    network: nn.Module, seen: Tensor, label: Tensor, encoding: PromptEncoding, loss_fn: nn.Module
) -> tuple[Tensor, Tensor]:
    """Loss, and the lesion's probability (B, 1, D, H, W)."""
    device = next(network.parameters()).device
    annotated = torch.ones(len(seen), 2, dtype=torch.bool, device=device)
    seen = seen.to(device)
    outputs = with_prior(network(seen), seen, encoding)
    loss: Tensor = loss_fn(outputs, label.to(device), annotated)
    return loss, lesion_probability(outputs)


def follow_up_loss(network: nn.Module, samples: Sequence[FollowUpSample], loss_fn: nn.Module) -> Tensor:
    """The mean loss on both scans, the first answer being the second's prompt; arguments as for `prompt_loss`."""
    encoding = samples[0].first.patch.plan.encoding
    image, label = collate([s.first for s in samples])
    first, probability = _judged(network, image, label, encoding, loss_fn)
    image, label = collate([s.later for s in samples])
    image = image.to(probability.device)
    if encoding.dense:
        grid = torch.from_numpy(np.stack([propagation(s) for s in samples])).to(probability)
        image = with_mask(image, propagated(probability, grid))
        image = torch.cat([image[:, :-1], _walked(image.detach(), samples)], dim=1)
    second, _ = _judged(network, image, label, encoding, loss_fn)
    return (first + second) / 2


def _walked(image: Tensor, samples: Sequence[FollowUpSample]) -> Tensor:
    """The random walker's channel of masks that have just been carried, (B, 1, D, H, W)."""
    seen = image.cpu().numpy()
    found = [
        walker_channel(x[0], x[1 : 1 + len(CHANNELS)], s.later.patch.voxel_mm)
        for x, s in zip(seen, samples, strict=True)
    ]
    return torch.from_numpy(np.stack(found)[:, None]).to(image)


def propagation(sample: FollowUpSample) -> npt.NDArray[np.float32]:
    """Where in the first patch each place of the later one lies: (3, 4), in the coordinates of `affine_grid`.

    Both scans show the same box of the patient, as registration brings it there; patches lie elsewhere in it.
    """
    first, later = sample.first, sample.later
    matrix = np.zeros((3, 4), dtype=np.float32)
    for axis in range(3):
        (start, size), (there, wide) = (
            ((s.patch.start[axis] * mm), s.patch.shape[axis] * mm)
            for s, mm in ((later, later.scan.spacing_mm[axis]), (first, first.scan.spacing_mm[axis]))
        )
        row = 2 - axis  # affine_grid counts x, y, z
        matrix[row, row] = size / wide
        matrix[row, 3] = (2 * (start - there) + size) / wide - 1
    return matrix


def propagated(probability: Tensor, matrices: Tensor) -> Tensor:
    """Probabilities of the first patch, warped to the later one.

    Args:
        probability: (B, 1, D, H, W).
        matrices: (B, 3, 4) of `propagation`.

    Returns:
        (B, 1, D, H, W); 0 beyond the first patch.
    """
    grid = F.affine_grid(matrices, list(probability.shape), align_corners=False)
    return F.grid_sample(probability, grid, align_corners=False)


def with_mask(image: Tensor, probability: Tensor) -> Tensor:
    """Network inputs whose mask prompt is a probability above one half; the gradient is the probability's.

    Args:
        image: (B, 9, D, H, W).
        probability: (B, 1, D, H, W).
    """
    mask = (probability > 0.5).to(probability) + probability - probability.detach()
    return torch.cat([image[:, : 1 + _MASK], mask, image[:, 2 + _MASK :]], dim=1)


@torch.no_grad()
def corrected_samples(
    network: nn.Module, samples: Sequence[Sample], corrections: int, rng: np.random.Generator
) -> list[Sample]:
    """The samples with clicks of a reader who sees what the network says.

    Args:
        network: in any mode; it is asked in evaluation mode and left as it was.
        samples: of one step.
        corrections: most clicks; their number is drawn, the same for all samples.
        rng: of the reader.
    """
    was_training = network.training
    network.eval()
    found = list(samples)
    device = next(network.parameters()).device
    for round_ in range(1, int(rng.integers(1, corrections + 1)) + 1):
        seen = collate(found)[0].to(device)
        outputs = with_prior(network(seen), seen, found[0].patch.plan.encoding)
        probability = lesion_probability(outputs)[:, 0].cpu().numpy()
        for index, sample in enumerate(found):
            said = sample.patch.whole(probability[index])
            inside = sample.patch.whole(np.ones(sample.patch.plan.size, dtype=np.float32))
            click = simulate_correction(
                sample.target & inside, said, sample.scan.spacing_mm, round_, rng, _READER
            )
            if click is not None:
                found[index] = Sample(sample.scan, sample.target, (*sample.prompts, click), sample.patch)
    network.train(was_training)
    return found
