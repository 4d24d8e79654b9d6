"""Noise that is Gaussian, sampling that is Poisson, and neither replayable."""

import os
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from fedvox_federation.dp_sgd.randomness import SystemRandomness, poisson_sample


def test_the_noise_is_standard_gaussian():
    sample = SystemRandomness().normal((200_000,)).numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-4
    assert abs(sample.mean()) < 0.012
    assert abs(sample.std() - 1) < 0.01
    assert abs(stats.kurtosis(sample)) < 0.06


def test_neighbours_are_independent():
    sample = SystemRandomness().normal((300_000,)).numpy()
    for lag in (1, 2, 150_000):
        assert abs(np.corrcoef(sample[:-lag], sample[lag:])[0, 1]) < 0.01
        assert abs(np.corrcoef(sample[:-lag] ** 2, sample[lag:] ** 2)[0, 1]) < 0.01


def test_shapes_of_any_size_are_filled():
    for shape in ((), (0,), (3, 4, 5), (1, 262_145)):
        noise = SystemRandomness().normal(shape)
        assert noise.shape == shape
        assert noise.dtype is torch.float64
        assert len(noise.unique()) == noise.numel()


def test_a_training_seed_does_not_reach_the_noise():
    samples = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        samples.append(SystemRandomness().normal((4,)))
    assert not torch.equal(*samples)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_does_not_repeat_its_parents_noise(tmp_path):
    randomness = SystemRandomness()
    child = os.fork()
    if child == 0:
        (tmp_path / "noise").write_bytes(pickle.dumps(randomness.normal((4,)).tolist()))
        os._exit(0)
    os.waitpid(child, 0)
    assert pickle.loads((tmp_path / "noise").read_bytes()) != randomness.normal((4,)).tolist()


def test_no_seed_can_be_given():
    with pytest.raises(TypeError):
        SystemRandomness(0)


def test_poisson_samples_have_the_rates_mean_and_spread_and_are_often_empty():
    randomness = SystemRandomness()
    sizes = np.array([len(poisson_sample(randomness, 10, 0.1)) for _ in range(4000)])
    assert abs(sizes.mean() - 1) < 0.08
    assert abs(sizes.var() - 0.9) < 0.1
    assert abs((sizes == 0).mean() - 0.9**10) < 0.04  # a third of all steps in a clinic of ten


def test_every_patient_is_drawn_alike_and_a_rate_of_one_draws_all():
    randomness = SystemRandomness()
    drawn = [index for _ in range(2000) for index in poisson_sample(randomness, 8, 0.5)]
    counts = np.bincount(drawn, minlength=8)
    assert (abs(counts / 2000 - 0.5) < 0.06).all()
    assert poisson_sample(randomness, 5, 1.0) == [0, 1, 2, 3, 4]
