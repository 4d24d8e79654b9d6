"""Backbones by name."""

import json

import pytest
import torch

from fedvox.errors import ConfigError
from fedvox.models.backbone import Backbone
from fedvox.models.registry import build_model, describe, from_description, list_models, model_config


@pytest.mark.parametrize("name", list_models())
def test_every_model_names_its_parts_and_is_described_by_plain_data(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, in_channels=2, classes=5)
        again = from_description(json.loads(json.dumps(describe(model))))
    assert isinstance(model, Backbone)
    for part in ("stem", "encoder", "decoder", "heads"):
        assert sum(p.numel() for p in getattr(model, part).parameters()) > 0
    named = sum(
        p.numel()
        for part in ("stem", "encoder", "decoder", "heads")
        for p in getattr(model, part).parameters()
    )
    assert named == sum(p.numel() for p in model.parameters()), "a parameter outside the four parts"
    assert len(model.divisor) == 3
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="mednext-v2-bse") as refusal:
        build_model("mednext-v2-bse", in_channels=1, classes=2)
    assert "did you mean 'mednext-v2-base'?" in refusal.value.remedy


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="kernle") as refusal:
        model_config("mednext-v1-s", in_channels=1, classes=2, kernle=5)
    assert "did you mean 'kernel'?" in refusal.value.remedy


def test_an_unknown_architecture_in_a_description_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="mednxt") as refusal:
        from_description({"architecture": "mednxt", "config": {}})
    assert "did you mean 'mednext'?" in refusal.value.remedy


def test_lists_from_yaml_count_as_tuples() -> None:
    config = model_config(
        "mednext-v2-nano", in_channels=1, classes=2, kernel=[[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    )
    assert config.kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    hash(config)
