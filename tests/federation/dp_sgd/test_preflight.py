"""What the preflight must catch, each built on purpose, and what it must pass."""

import pytest
import torch
from torch import nn

from fedvox.models.registry import build_model
from fedvox.training.loss import DiceCrossEntropy
from fedvox_federation.dp_sgd.preflight import preflight
from fedvox_federation.dp_sgd.trainable import select_trainable
from fedvox_federation.errors import UnsafeModel

BACKBONES = {
    "mednext-v1": ("mednext-v2-nano", {"grn": None}),
    "mednext-v2": ("mednext-v2-nano", {}),
    "resenc-unet": ("resenc-unet-tiny", {"features": (4, 8, 8, 8)}),
    "primus-v2": ("primus-v2-tiny", {"patch_size": 16, "width": 12, "depth": 1}),
}


def segmentation_loss(batch_dice=False):
    criterion = DiceCrossEntropy(batch_dice=batch_dice)

    def loss(model, tensors):
        images, labels = tensors
        return criterion(model(images), labels, torch.ones(len(images), 2, dtype=torch.bool))

    return loss


def example(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 1, size, size, size, generator=generator)
    labels = torch.randint(0, 2, (3, 1, size, size, size), generator=generator)
    labels[0] = 0  # samples of different content, or nothing could be told
    return images, labels


def net(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), *middle, nn.Conv3d(4, 2, 1))


@pytest.mark.parametrize("mode", ["loop", "hooks"])
@pytest.mark.parametrize("name", BACKBONES)
def test_our_backbones_pass_with_every_layer_measured(name, mode):
    torch.manual_seed(0)
    architecture, fields = BACKBONES[name]
    model = build_model(architecture, in_channels=1, classes=2, deep_supervision=False, **fields)
    select_trainable(model, "full")
    report = preflight(model, segmentation_loss(), example(16), mode=mode)
    report.require()
    if mode == "hooks":
        assert set(report.errors) == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("model", "modes", "where", "word"),
    [
        (net(nn.BatchNorm3d(4)), ("loop", "hooks"), "1", "mixes the patients"),
        (
            net(nn.InstanceNorm3d(4, affine=True, track_running_stats=True)),
            ("loop", "hooks"),
            "1",
            "statistics",
        ),
        (net(nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate")), ("hooks",), "1", "replicate padding"),
        (net(nn.Conv3d(4, 4, 3, padding=1, padding_mode="reflect")), ("hooks",), "1", "reflect padding"),
        (net(nn.ReLU(inplace=True)), ("hooks",), "1", "overwrites"),
    ],
    ids=["batch norm", "running statistics", "replicate", "reflect", "in place"],
)
def test_unsafe_layers_are_named_in_the_modes_in_which_they_are_unsafe(model, modes, where, word):
    for mode in ("loop", "hooks"):
        report = preflight(model, segmentation_loss(), example(), mode=mode)
        assert report.safe == (mode not in modes)
        if mode in modes:
            assert [(one.where, word in one.problem) for one in report.findings] == [(where, True)]
            with pytest.raises(UnsafeModel, match=word):
                report.require()


@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_batch_dice_is_caught_by_its_gradients(mode):
    report = preflight(net(), segmentation_loss(batch_dice=True), example(), mode=mode)
    assert [one.where for one in report.findings] == ["loss"]


def test_a_mean_over_the_voxels_of_a_batch_is_caught():
    def voxel_mean(model, tensors):
        images, labels = tensors
        return nn.functional.cross_entropy(model(images), labels[:, 0], ignore_index=-1)

    images, labels = example()
    labels[0, :, :4] = -1  # one sample has fewer voxels that count
    assert not preflight(net(), voxel_mean, (images, labels)).safe
    assert preflight(net(), segmentation_loss(), (images, labels)).safe


class Mixer(nn.Module):
    """Adds the batch's mean to each sample, without any layer that is known for it."""

    def forward(self, x):
        return x + x.mean(0, keepdim=True)


def test_samples_that_see_each_other_are_caught_without_a_known_layer():
    assert [one.where for one in preflight(net(Mixer()), segmentation_loss(), example()).findings] == ["loss"]


class Counter(nn.Module):
    """Keeps the mean of what it has seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.copy_(x.detach().mean())
        return x


def test_a_buffer_that_the_data_writes_to_is_caught():
    report = preflight(net(Counter()), segmentation_loss(), example())
    assert [one.where for one in report.findings] == ["1.seen"]


class Memory(nn.Module):
    """Adds a little of what it saw before, which it keeps in no buffer."""

    seen = 0.0

    def forward(self, x):
        found = x + self.seen
        self.seen = 0.9 * self.seen + 0.1 * x.detach().mean()
        return found


class Frozen(nn.Module):
    """Writes what it sees into a parameter that is not trained."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        self.weight.data += x.detach().mean()
        return x


class DropMix(nn.Module):
    """MixUp under the name of a dropout."""

    def forward(self, x):
        return x + 0.5 * x.roll(1, 0) if self.training else x


def loss_with_memory():
    """Divides by a running mean of the losses that it saw."""
    inner, kept = segmentation_loss(), [1.0]

    def loss(model, tensors):
        value = inner(model, tensors)
        kept[0] = 0.99 * kept[0] + 0.01 * float(value.detach())
        return value / kept[0]

    return loss


@pytest.mark.parametrize("mode", ["loop", "hooks"])
@pytest.mark.parametrize(
    ("middle", "loss", "where"),
    [
        (Memory(), segmentation_loss(), "loss"),
        (nn.Identity(), loss_with_memory(), "loss"),
        (Frozen(), segmentation_loss(), "1.weight"),
        (DropMix(), segmentation_loss(), "loss"),
    ],
)
def test_what_is_kept_from_one_patient_to_the_next_or_mixed_in_training_is_caught(mode, middle, loss, where):
    assert [one.where for one in preflight(net(middle), loss, example(), mode=mode).findings] == [where]


@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_dropout_is_safe_and_passes(mode):
    assert preflight(net(nn.Dropout3d(0.5), nn.Dropout(0.5)), segmentation_loss(), example(), mode=mode).safe


class Spare(nn.Module):
    """A parameter that nobody uses."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x


@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_a_parameter_that_would_get_nothing_but_noise_is_caught_and_freezing_it_helps(mode):
    model = net(Spare())
    assert [one.where for one in preflight(model, segmentation_loss(), example(), mode=mode).findings] == [
        "1.weight"
    ]
    model[1].requires_grad_(False)
    assert preflight(model, segmentation_loss(), example(), mode=mode).safe


class AddInPlace(nn.Module):
    """A residual written as x += y."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        y += x
        return y


def test_a_residual_in_place_does_not_run_under_hooks_and_is_told_so():
    report = preflight(net(AddInPlace()), segmentation_loss(), example(), mode="hooks")
    assert [one.where for one in report.findings] == ["model"]
    assert preflight(net(AddInPlace()), segmentation_loss(), example(), mode="loop").safe


def test_the_gradients_that_hooks_get_wrong_are_wrong_by_measurement_too(monkeypatch):
    """Without the rule about padding, the comparison with the loop finds it."""
    from fedvox_federation.dp_sgd import preflight as module

    monkeypatch.setattr(module, "_layer_under_hooks", lambda name, layer: iter(()))
    model = net(nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"))
    report = preflight(model, segmentation_loss(), example(), mode="hooks")
    assert "1.weight" in [one.where for one in report.findings]
    assert report.errors["1.weight"] > 0.01


def test_the_model_itself_is_left_alone():
    model = net(nn.Dropout3d(0.5)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert preflight(model, segmentation_loss(), example(), mode="hooks").safe
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("padding", ["zeros", "replicate", "reflect", "circular"])
def test_why_ghost_clipping_is_not_offered(padding):
    """With padding other than zeros one sample contributes more than the bound, and Opacus's validator is content."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.validators import ModuleValidator

    model = nn.Conv3d(1, 4, 3, padding=1, padding_mode=padding, bias=False)
    assert not ModuleValidator.validate(model)
    ghost = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, loss_reduction="sum")
    per_sample_loss = (ghost(torch.full((1, 1, 4, 4, 4), 5.0)) - 100).square().flatten(1).sum(1)
    per_sample_loss.sum().backward(retain_graph=True)
    ghost.get_norm_sample()
    clipped = per_sample_loss * ghost.get_clipping_coef()
    model.weight.grad = None
    ghost.disable_hooks()
    clipped.sum().backward()
    contribution = float(model.weight.grad.norm())
    assert contribution < 1.0001 if padding == "zeros" else contribution > 1.6
