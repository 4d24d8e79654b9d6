"""What a federation is told, from a file and from Flower's flat run configuration."""

import subprocess
import sys

import pytest

from fedvox.errors import ConfigError
from fedvox_federation.config import ClinicConfig, FederationConfig, from_run_config, to_run_config


def test_flowers_run_configuration_names_a_file_of_the_app_and_overrides(tmp_path):
    (tmp_path / "study.yaml").write_text("rounds: 7\nname: nord\n")
    given = to_run_config("study.yaml", ["privacy.epsilon=4", "strategy.name=fedprox", "study=a b"])
    found = from_run_config(given, tmp_path)
    assert (found.rounds, found.name, found.privacy.epsilon, found.study) == (7, "nord", 4, "a b")


def test_an_unknown_key_of_the_run_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="learning-rate"):
        from_run_config({"learning-rate": 0.1}, tmp_path)


def test_places_of_files_do_not_matter_to_what_was_agreed_but_privacy_does():
    base = FederationConfig()
    assert FederationConfig(output="/elsewhere", pretrained="/copy").sha256 == base.sha256
    assert FederationConfig(privacy={"epsilon": 7}).sha256 != base.sha256
    assert FederationConfig(rounds=4).sha256 != base.sha256
    assert FederationConfig(training={"device": "cpu"}).sha256 == base.sha256


def test_secure_aggregation_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="legacy"):
        FederationConfig(strategy={"secure_aggregation": True})


def test_only_fedprox_pulls():
    options = {"proximal_mu": 0.3}
    assert FederationConfig(strategy={"name": "fedprox", "options": options}).proximal_mu == 0.3
    assert FederationConfig().proximal_mu == 0


def test_a_clinic_must_say_what_its_budget_is():
    with pytest.raises(ValueError, match="budget_epsilon"):
        ClinicConfig(name="Nord", store="/s", folder="/f", budget_delta=1e-3)


def test_reading_a_configuration_imports_neither_torch_nor_flower():
    code = (
        "import sys, fedvox_federation.config, fedvox_federation.protocol\n"
        "sys.exit(bool({'torch', 'flwr', 'ray', 'opacus'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
