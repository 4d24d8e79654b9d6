"""The segmentation task of the experiment, with few heads and hardly any pretraining."""

import numpy as np
import pytest
import torch

from fedvox_federation.experiment import brains

pytest.importorskip("nilearn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("brains")


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    for name, value in {"_PUBLIC": 2, "PER_CLINIC": 3, "TESTED": 1, "_PRETRAINING_STEPS": 20}.items():
        monkeypatch.setattr(brains, name, value)


def images_of(problem):
    return {name: [test[0] for test in site.tests] for name, site in problem.sites.items()}


def test_heads_are_dealt_by_the_seed_and_made_once(folder, clinics):
    first = brains.brain_problem(folder, 0, clinics)
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, other = brains.brain_problem(folder, 0, clinics), brains.brain_problem(folder, 1, clinics)
    assert made == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(first.sites) == set(clinics)
    assert all(len(site.patients) == 2 and len(site.tests) == 1 for site in first.sites.values())
    for name, seen in images_of(first).items():
        assert torch.equal(seen[0], images_of(again)[name][0])
        assert not torch.equal(seen[0], images_of(other)[name][0])


def test_a_patient_brings_two_patches_that_hold_the_same_place_of_image_and_label(folder, clinics):
    site = next(iter(brains.brain_problem(folder, 0, clinics).sites.values()))
    image, label = site.patients[0]()
    assert image.shape == label.shape == (2, 1, 4, 24, 24)
    assert set(label.unique().tolist()) <= {0, 1, 2}
    assert image[label == 2].mean() > image[label == 0].mean()  # white matter is bright, air is not


def test_scanners_of_ill_equipped_clinics_tell_less_of_gray_and_white(folder, clinics):
    problem = brains.brain_problem(folder, 0, clinics)
    told = {"university": [], "under-resourced": []}
    for name, clinic in clinics.items():
        if clinic.profile.name in told:
            (image, label) = problem.sites[name].tests[0]
            gray, white = image[label == 1], image[label == 2]
            told[clinic.profile.name].append(float((white.mean() - gray.mean()) / (gray.std() + white.std())))
    assert np.mean(told["university"]) > np.mean(told["under-resourced"])


def test_everybody_starts_from_the_same_weights_and_a_head_that_knows_nothing(folder, clinics):
    problem = brains.brain_problem(folder, 0, clinics)
    model, twin = problem.build_model(), problem.build_model()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 91
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    tests = [test for site in problem.sites.values() for test in site.tests]
    assert problem.score(model, tests) == [0.0] * len(tests)  # everything is background
    patient = next(iter(problem.sites.values())).patients[0]()
    loss = problem.loss(model, patient)
    assert torch.isfinite(loss)
    loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in trained.values())
