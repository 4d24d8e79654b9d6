import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss
from torch.nn import functional as F

from fedvox.training.loss import (
    IGNORE,
    DeepSupervision,
    DiceCrossEntropy,
    deep_supervision_weights,
    merge_unannotated,
)


def batch(seed=0, b=2, k=4, size=6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, k, size, size, size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, k, (b, 1, size, size, size), generator=generator)
    return logits.float().requires_grad_(), target, torch.ones(b, k, dtype=torch.bool)


def reference_loss(logits, target, smooth=1e-5):
    """nnU-Net's loss in so many words: one-hot, per sample and class, foreground only."""
    probabilities = logits.softmax(1)
    onehot = F.one_hot(target[:, 0], logits.shape[1]).movedim(-1, 1).float()
    axes = (2, 3, 4)
    intersection = (probabilities * onehot).sum(axes)[:, 1:]
    total = (probabilities.sum(axes) + onehot.sum(axes))[:, 1:]
    dice = (2 * intersection + smooth) / (total + smooth)
    return F.cross_entropy(logits, target[:, 0]) - dice.mean()


@pytest.mark.parametrize("seed", range(3))
def test_fully_annotated_loss_and_gradient_equal_nnunets(seed):
    logits, target, annotated = batch(seed)
    ours = DiceCrossEntropy()(logits, target, annotated)
    (ours_grad,) = torch.autograd.grad(ours, logits)
    theirs = reference_loss(logits, target)
    (theirs_grad,) = torch.autograd.grad(theirs, logits)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(ours_grad, theirs_grad, atol=1e-7)


def test_dice_part_equals_monai():
    logits, target, annotated = batch()
    ours = DiceCrossEntropy(smooth=1e-5)(logits, target, annotated) - F.cross_entropy(logits, target[:, 0])
    monai = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, smooth_nr=1e-5, smooth_dr=1e-5)
    assert torch.allclose(ours + 1, monai(logits, target), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_merging_adds_probabilities_to_the_background(seed):
    logits, _, _ = batch(seed)
    annotated = torch.tensor([[True, True, False, False], [True, False, True, True]])
    merged = merge_unannotated(logits, annotated).softmax(1)
    plain = logits.softmax(1)
    assert torch.allclose(merged[0, 0], plain[0, 0] + plain[0, 2] + plain[0, 3], atol=1e-6)
    assert torch.allclose(merged[0, 1], plain[0, 1], atol=1e-6)
    assert (merged[0, 2:] == 0).all()
    assert torch.allclose(merged[1, 2:], plain[1, 2:], atol=1e-6)


def test_a_partial_label_equals_the_full_loss_on_the_reduced_label_set():
    """Training on {background, liver} alone is the loss of a two-class problem with merged probabilities."""
    logits, target, _ = batch(b=1)
    target = (target == 1).long()
    annotated = torch.tensor([[True, True, False, False]])
    ours = DiceCrossEntropy()(logits, target, annotated)
    two = torch.stack([torch.logsumexp(logits[:, [0, 2, 3]], 1), logits[:, 1]], 1)
    assert torch.allclose(ours, reference_loss(two, target), atol=1e-6)


def test_unannotated_structures_are_neither_rewarded_nor_punished_relative_to_background():
    logits, target, _ = batch(b=1)
    target = (target == 1).long()
    annotated = torch.tensor([[True, True, False, False]])
    loss = DiceCrossEntropy()(logits, target, annotated)
    (grad,) = torch.autograd.grad(loss, logits)
    # Background and unannotated share one gradient in proportion to their probability.
    share = logits[:, [0, 2, 3]].softmax(1)
    total = grad[:, [0, 2, 3]].sum(1, keepdim=True)
    assert torch.allclose(grad[:, [0, 2, 3]], share * total, atol=1e-6)
    assert torch.isfinite(grad).all()


def test_ignored_voxels_change_neither_loss_nor_gradient():
    logits, target, annotated = batch()
    target[:, :, :2] = IGNORE
    loss = DiceCrossEntropy()(logits, target, annotated)
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad[:, :, :2] == 0).all()
    cropped = DiceCrossEntropy()(logits[:, :, 2:], target[:, :, 2:], annotated)
    assert torch.allclose(loss, cropped, atol=1e-6)


def test_a_patch_without_any_valid_voxel_gives_a_finite_loss():
    logits, target, annotated = batch()
    loss = DiceCrossEntropy()(logits, torch.full_like(target, IGNORE), annotated)
    loss.backward()
    assert torch.isfinite(loss)
    assert (logits.grad == 0).all()


def test_batch_dice_pools_sums_before_dividing():
    logits, target, annotated = batch()
    loss = DiceCrossEntropy(batch_dice=True)(logits, target, annotated)
    joined = logits.detach().movedim(1, 0).reshape(1, 4, -1, 1, 1)
    reference = reference_loss(joined, target.reshape(1, 1, -1, 1, 1))
    assert torch.allclose(loss, reference, atol=1e-5)


@pytest.mark.parametrize(("levels", "expected"), [(1, [1.0]), (2, [1.0, 0.0]), (3, [2 / 3, 1 / 3, 0.0])])
def test_deep_supervision_weights_halve_drop_the_coarsest_and_sum_to_one(levels, expected):
    assert deep_supervision_weights(levels) == pytest.approx(expected)


def test_deep_supervision_is_the_weighted_sum_over_nearest_targets():
    _, target, annotated = batch(size=8)
    outputs = [torch.randn(2, 4, n, n, n, requires_grad=True) for n in (8, 4, 2)]
    ours = DeepSupervision(DiceCrossEntropy())(outputs, target, annotated)
    half = F.interpolate(target.float(), size=(4, 4, 4), mode="nearest").long()
    expected = 2 / 3 * reference_loss(outputs[0], target) + 1 / 3 * reference_loss(outputs[1], half)
    assert torch.allclose(ours, expected, atol=1e-6)
    ours.backward()
    assert outputs[2].grad is not None  # weight 0, but in the graph: DDP waits for every parameter
    assert (outputs[2].grad == 0).all()
