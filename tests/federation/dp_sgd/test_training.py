"""Steps of DP-SGD against Opacus, against hand computation, and against what would break the bound."""

import math

import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from fedvox.errors import ConfigError
from fedvox.models.registry import build_model
from fedvox_federation.dp_sgd.trainable import select_trainable
from fedvox_federation.dp_sgd.training import PrivacySettings, PrivateTrainer, per_sample
from fedvox_federation.errors import PrivacyError
from fedvox_federation.privacy import epsilon

BACKBONES = {
    "mednext-v2": ("mednext-v2-nano", {}),
    "resenc-unet": ("resenc-unet-tiny", {"features": (4, 8, 8, 8)}),
    "primus": ("primus-v1-s", {"patch_size": 16, "width": 12, "depth": 1, "attention_heads": 2, "drop_path": 0.0}),
}  # fmt: skip


class NoNoise:
    """For comparisons: zeros, and everybody takes part."""

    def normal(self, shape):
        return torch.zeros(tuple(shape), dtype=torch.float64)

    def bernoulli(self, rate, count):
        return [True] * count


class Nobody(NoNoise):
    """Ones as noise, and nobody takes part."""

    def normal(self, shape):
        return torch.ones(tuple(shape), dtype=torch.float64)

    def bernoulli(self, rate, count):
        return [False] * count


def squared_error(model, tensors):
    images, targets = tensors
    return (model(images) - targets).square().flatten(1).mean(1).mean()


def patient(patches, seed, size=16, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(patches, 1, size, size, size, generator=generator)
    targets = scale * torch.randn(patches, 2, size, size, size, generator=generator)
    return lambda: (images, targets)


def vectors(patches, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(patches, 6, generator=generator)
    targets = scale * torch.randn(patches, 2, generator=generator)
    return lambda: (images, targets)


def small_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2))


def trainer_of(model, *, noise=0.0, clip=1.0, patients=4, randomness=None, lr=1.0, **more):
    settings = PrivacySettings(noise, clip, 0.5, patients, **more)
    trained = [p for p in model.parameters() if p.requires_grad]
    return PrivateTrainer(
        model, torch.optim.SGD(trained, lr=lr), squared_error, settings, randomness=randomness or NoNoise()
    )


def released(trainer, drawn):
    """The gradient that one step hands to the optimizer, flat."""
    before = torch.cat([p.detach().flatten().clone() for p in trainer.parameters])
    report = trainer.step(drawn)
    after = torch.cat([p.detach().flatten() for p in trainer.parameters])
    return before - after, report


@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_one_patch_each_is_the_step_of_opacus(mode):
    patients = [vectors(1, seed, scale=3) for seed in range(4)]
    mine, _ = released(trainer_of(small_net(), clip=0.3, mode=mode, patches_at_once=4), patients)
    model = per_sample(small_net())
    theirs = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.3,
        expected_batch_size=2, loss_reduction="mean",
    )  # fmt: skip
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    batch = tuple(torch.cat(column) for column in zip(*(one() for one in patients), strict=True))
    (squared_error(model, batch) * 4).backward()
    theirs.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(mine, before - after, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("mednext-v2", "full"),
        ("mednext-v2", "norm+head"),
        ("resenc-unet", "decoder"),
        ("primus", "norm+head"),
    ],
)
def test_both_modes_release_the_same_on_every_backbone_and_scope(name, scope):
    patients = [patient(2, 0), patient(1, 1), patient(2, 2)]
    steps = []
    for mode in ("loop", "hooks"):
        torch.manual_seed(1)
        architecture, fields = BACKBONES[name]
        model = build_model(architecture, in_channels=1, classes=2, deep_supervision=False, **fields)
        select_trainable(model, scope)
        trainer = trainer_of(model, clip=0.05, patients=3, mode=mode, patches_at_once=3)
        steps.append(released(trainer, patients))
    (looped, report), (hooked, other) = steps
    assert report == other
    assert report.clipped
    assert (looped - hooked).abs().max() < 1e-3 * looped.abs().max()


@pytest.mark.parametrize("mode", ["loop", "hooks"])
@pytest.mark.parametrize("patches", [1, 3, 10])
def test_a_patient_moves_the_sum_by_at_most_the_bound_however_many_patches(mode, patches):
    """Add or remove one patient: the released sum (times the expected batch) moves by the clipping norm at most."""
    others = [vectors(1, seed) for seed in range(2)]
    wild = vectors(patches, 99, scale=1e4)
    options = {"clip": 0.7, "mode": mode, "patches_at_once": 12}
    with_them, _ = released(trainer_of(small_net(), **options), [*others, wild])
    without, _ = released(trainer_of(small_net(), **options), others)
    assert 0.699 < (with_them - without).norm() * 2 <= 0.7 * (1 + 1e-6)


def test_many_patches_in_pieces_are_the_gradient_of_their_mean():
    wild = [vectors(7, 5)]
    pieces, _ = released(trainer_of(small_net(), clip=1e6, patches_at_once=2), wild)
    whole, _ = released(trainer_of(small_net(), clip=1e6, patches_at_once=7), wild)
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_a_patient_with_a_gradient_of_nan_or_infinity_counts_as_zero(mode, bad):
    broken = (torch.full((1, 6), bad), torch.zeros(1, 2))
    good = [vectors(1, 0)]
    options = {"mode": mode, "patches_at_once": 4}
    step, report = released(trainer_of(small_net(), **options), [*good, lambda: broken])
    alone, _ = released(trainer_of(small_net(), **options), good)
    assert report.discarded == 1
    torch.testing.assert_close(step, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_a_step_without_patients_is_noise_alone_and_is_made(mode):
    step, report = released(trainer_of(small_net(), noise=1.5, clip=0.4, mode=mode, randomness=Nobody()), [])
    assert report.patients == 0
    torch.testing.assert_close(step, torch.full_like(step, 1.5 * 0.4 / 2), rtol=1e-4, atol=1e-5)


def test_empty_steps_are_made_and_counted_in_a_small_clinic():
    patients = [vectors(1, seed) for seed in range(10)]
    settings = PrivacySettings(1.0, 1.0, 0.1, 10)
    model = small_net()
    trainer = PrivateTrainer(model, torch.optim.SGD(model.parameters(), lr=0.01), squared_error, settings)
    reports = trainer.train(patients, steps=60)
    assert len(reports) == 60
    assert any(report.patients == 0 for report in reports)
    assert settings.phase(60).steps == 60
    assert epsilon(1.0, 0.1, 60, 1e-3) > epsilon(1.0, 0.1, 40, 1e-3)


def test_the_noise_has_the_promised_size_and_ignores_the_training_seed():
    steps = []
    for _ in range(2):
        model = nn.Linear(100, 100, bias=False)
        nn.init.zeros_(model.weight)
        torch.manual_seed(0)
        settings = PrivacySettings(2.0, 0.5, 0.25, 16)
        trainer = PrivateTrainer(model, torch.optim.SGD(model.parameters(), lr=1.0), squared_error, settings)
        steps.append(released(trainer, [])[0])
    assert not torch.equal(*steps)
    assert steps[0].std() == pytest.approx(2.0 * 0.5 / 4, rel=0.05)


def test_frozen_parameters_get_neither_gradient_nor_noise():
    model = small_net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    released(trainer_of(model, noise=1.0, randomness=Nobody()), [vectors(1, 0)])
    assert torch.equal(model[0].weight, before)


def test_the_divisor_is_the_expected_batch_and_not_the_actual_one():
    one, _ = released(trainer_of(small_net(), clip=1e6), [vectors(1, 0)])
    twice, _ = released(trainer_of(small_net(), clip=1e6), [vectors(1, 0)] * 2)
    torch.testing.assert_close(twice, 2 * one, rtol=1e-4, atol=1e-6)


def test_after_hooks_the_model_is_an_ordinary_one_again():
    model = small_net()
    released(trainer_of(model, mode="hooks", patches_at_once=4), [vectors(1, 0)])
    squared_error(model, vectors(2, 1)()).backward()
    assert all(getattr(p, "grad_sample", None) is None for p in model.parameters())


def test_another_number_of_patients_than_accounted_for_is_refused():
    with pytest.raises(ConfigError, match="3 patients"):
        trainer_of(small_net()).train([vectors(1, 0)] * 3, steps=1)


def test_parameters_that_nobody_would_add_noise_to_are_refused():
    model = small_net()
    settings = PrivacySettings(1.0, 1.0, 0.5, 4)
    with pytest.raises(ConfigError, match="not in the optimizer"):
        PrivateTrainer(model, torch.optim.SGD(model[3].parameters(), lr=1.0), squared_error, settings)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is trainable"):
        PrivateTrainer(model, torch.optim.SGD(model.parameters(), lr=1.0), squared_error, settings)


def test_in_hooks_a_patient_larger_than_the_physical_batch_is_refused():
    trainer = trainer_of(small_net(), mode="hooks", patches_at_once=2)
    with pytest.raises(ConfigError, match="3 patches"):
        trainer.step([vectors(3, 0)])


@pytest.mark.parametrize(
    "fields",
    [{"clipping_norm": 0}, {"clipping_norm": math.inf}, {"sample_rate": 0}, {"patients": 0}, {"mode": "ghost"},
     {"noise_multiplier": -1}, {"patches_at_once": 0}],
)  # fmt: skip
def test_settings_that_bound_nothing_are_refused(fields):
    valid = {"noise_multiplier": 1.0, "clipping_norm": 1.0, "sample_rate": 0.5, "patients": 4}
    with pytest.raises(PrivacyError):
        PrivacySettings(**{**valid, **fields})


def test_private_training_learns_when_the_noise_is_small():
    torch.manual_seed(0)
    truth = torch.randn(6, 2)
    patients = [
        lambda x=x: (x, x @ truth) for x in torch.randn(40, 3, 6)
    ]  # forty patients of three measurements each
    model = nn.Linear(6, 2)
    settings = PrivacySettings(0.3, 1.0, 0.25, 40)
    trainer = PrivateTrainer(model, torch.optim.SGD(model.parameters(), lr=0.3), squared_error, settings)

    @torch.no_grad()
    def loss():
        return sum(float(squared_error(model, one())) for one in patients) / 40

    before = loss()
    trainer.train(patients, steps=80)
    assert loss() < before / 5


def test_scopes_train_the_parts_they_name():
    model = build_model("mednext-v2-nano", in_channels=1, classes=2, deep_supervision=False)
    sizes = {
        scope: sum(p.numel() for p in select_trainable(model, scope))
        for scope in ("full", "decoder", "norm+head")
    }
    assert sizes["norm+head"] < sizes["decoder"] < sizes["full"]
    assert sizes["full"] == sum(p.numel() for p in model.parameters())
    select_trainable(model, "decoder")
    assert not any(p.requires_grad for p in (*model.stem.parameters(), *model.encoder.parameters()))
    with pytest.raises(ConfigError):
        select_trainable(model, "head")
