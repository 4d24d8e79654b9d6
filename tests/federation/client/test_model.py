"""The network that everybody builds alike, and the few numbers of it that travel."""

import dataclasses

import numpy as np
import pytest
import torch

from fedvox.errors import ConfigError
from fedvox.training.pretrained import read_pretrained
from fedvox_federation.client.model import build
from fedvox_federation.protocol import BadMessage


@pytest.mark.parametrize("scope", ["full", "decoder", "norm+head", "lora"])
def test_server_and_clinics_build_the_same_network_whatever_their_own_seed(make_config, scope):
    config = make_config(training={"scope": scope, "lora_rank": 1})
    torch.manual_seed(1)
    first = build(config)
    torch.manual_seed(2)
    second = build(config)
    assert first.federated.shared == second.federated.shared
    assert first.federated.base_sha256 == second.federated.base_sha256
    pairs = zip(first.federated.arrays().values(), second.federated.arrays().values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_building_leaves_the_programs_own_random_numbers_alone(make_config):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build(make_config())
    assert torch.equal(torch.rand(1), expected)


def test_what_travels_is_what_is_trained(make_config):
    sizes = {
        scope: sum(
            value.size for value in build(make_config(training={"scope": scope})).federated.arrays().values()
        )
        for scope in ("norm+head", "decoder", "full")
    }
    assert sizes["norm+head"] < sizes["decoder"] < sizes["full"]


def test_frozen_weights_that_differ_have_another_hash(make_config):
    built = build(make_config())
    other = build(make_config())
    frozen = next(p for p in other.network.parameters() if not p.requires_grad)
    with torch.no_grad():
        frozen += 1e-3
    assert type(built.federated).of(other.network).base_sha256 != built.federated.base_sha256


def test_a_part_that_is_never_trained_must_not_start_anew(make_config, monkeypatch):
    def without_stem(uri):
        found = read_pretrained(uri)
        tensors = {name: value for name, value in found.tensors.items() if not name.startswith("stem")}
        return dataclasses.replace(found, tensors=tensors)

    monkeypatch.setattr("fedvox_federation.client.model.read_pretrained", without_stem)
    with pytest.raises(ConfigError, match="would start anew: stem"):
        build(make_config(training={"scope": "decoder"}))
    build(make_config(training={"scope": "full"}))


def test_loading_is_all_or_nothing(make_config):
    model = build(make_config()).federated
    before = model.arrays()
    bad = {name: value + 1 for name, value in before.items()}
    bad[model.shared[-1]] = np.full_like(bad[model.shared[-1]], np.inf)
    with pytest.raises(BadMessage):
        model.load(bad)
    assert all(np.array_equal(before[name], value) for name, value in model.arrays().items())


def test_low_rank_adapters_fold_into_the_ordinary_network(make_config):
    built = build(make_config(training={"scope": "lora", "lora_rank": 1}))
    names = {name for name, _ in build(make_config()).network.named_parameters()}
    model = built.federated
    model.load({name: value + 0.1 for name, value in model.arrays().items()})
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = built.network.eval()(image)
        found = built.merged().eval()(image)
    assert torch.allclose(expected, found, atol=1e-4)
    assert {name for name, _ in built.network.named_parameters()} == names
