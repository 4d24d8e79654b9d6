"""The command `flower-simulation` before Ray: apps, run configurations, plans, and what could never begin."""

import json
import subprocess
import sys

import pytest

from fedvox.errors import ConfigError
from fedvox_federation import cli_simulation
from fedvox_federation.config import FederationConfig
from fedvox_federation.simulation import check, read_app, run_config

PYPROJECT = """
[tool.flwr.app.components]
serverapp = "other.server:app"
clientapp = "other.client:app"
[tool.flwr.app.config]
num-server-rounds = 3
lr = 0.1
name = "a"
[tool.flwr.app.config.model]
deep = true
"""


@pytest.fixture
def foreign(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    return tmp_path


def test_an_app_is_what_its_pyproject_says(foreign):
    app = read_app(foreign)
    assert (app.server, app.client, app.is_ours) == ("other.server:app", "other.client:app", False)
    assert app.run_config == {"num-server-rounds": 3, "lr": 0.1, "name": "a", "model.deep": True}


def test_run_configuration_is_given_as_flower_takes_it(foreign):
    found = run_config(read_app(foreign), ["num-server-rounds=5 lr=1e-2", 'name="b c" model.deep=false'])
    assert found == {"num-server-rounds": 5, "lr": 0.01, "name": "b c", "model.deep": False}


def test_a_key_that_the_app_does_not_have_is_refused(foreign):
    with pytest.raises(ConfigError, match="no 'rounds'"):
        run_config(read_app(foreign), ["rounds=5"])
    with pytest.raises(ConfigError, match="key=value"):
        run_config(read_app(foreign), ["rounds"])


def test_fields_of_our_federation_need_not_be_declared(checkout):
    app = read_app(checkout)
    assert app.is_ours
    assert run_config(app, ["rounds=5 privacy.epsilon=4"])["set"] == "rounds=5 privacy.epsilon=4"


@pytest.mark.parametrize("text", ["", "[tool", "[tool.flwr.app]\npublisher='x'\n"])
def test_a_folder_without_an_app_is_told_so(tmp_path, text):
    if text:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError):
        read_app(tmp_path)


def test_a_run_that_would_wait_for_ever_is_refused():
    config = FederationConfig(server={"min_clinics": 4}, clinics={"partition": {"hospitals": 3}})
    with pytest.raises(ConfigError, match="wait for ever"):
        check(config, 3)
    with pytest.raises(ConfigError, match="hospitals"):
        check(FederationConfig(), 5)


@pytest.fixture
def simulate(monkeypatch, capsys, checkout):
    def run(*arguments):
        command = ["flower-simulation", "--app", str(checkout), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            cli_simulation.main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def test_a_dry_run_tells_every_clinics_noise_and_what_it_is_worth(simulate, write_config):
    profiles = [{"name": "good", "score": 1.0, "tier": 4}, {"name": "poor", "score": 0.1, "tier": 0}]
    path = write_config(clinics={"profiles": profiles})
    code, out, _ = simulate("--config", path, "--dry-run", "--json")
    assert code == 0
    first, second = json.loads(out)["clinics"]
    assert (first["patients"], first["held_out"]) == (2, 1)
    assert second["noise_multiplier"] == pytest.approx(2.5 * first["noise_multiplier"])
    assert second["epsilon"] < first["epsilon"] <= 8
    code, out, _ = simulate("--config", path, "--dry-run")
    assert "poor" in out
    assert "promise kept" in out


def test_the_number_of_supernodes_is_that_of_the_hospitals(simulate, write_config):
    code, out, _ = simulate("--config", write_config(), "--num-supernodes", 3, "--dry-run", "--json")
    assert code == 0
    assert len(json.loads(out)["clinics"]) == 3


def test_a_store_that_does_not_fit_is_found_before_anything_starts(simulate, write_config):
    code, _, err = simulate("--config", write_config(task={"structures": ["background", "liver"]}))
    assert code == 2
    assert "structures" in err


def test_wrong_options_are_told_without_a_traceback(simulate, write_config, foreign):
    assert simulate("--config", write_config(), "--backend-config", "{", "--dry-run")[0] == 2
    assert simulate("--app", foreign)[0] == 2
    code, _, err = simulate("--run-config", "privacy.epsilom=4", "--config", write_config(), "--dry-run")
    assert code == 2
    assert "did you mean 'epsilon'" in err


@pytest.mark.parametrize(
    "given",
    [
        "'",
        "privacy.epsilon=.inf",
        "training.lr=.inf",
        "strategy.name=fedprox 'strategy.options={proximal_mu: .nan}'",
        "strategy.name=fedprox 'strategy.options={nope: 1}'",
        "strategy.name=krum 'strategy.options={num_malicious_nodes: 5}'",
        "'privacy.policy={name: tiers, options: {factors: abc}}'",
        "'privacy.policy={name: continuous, options: {factor_at_zero: [1]}}'",
        "'privacy.policy={name: nope}'",
        "'clinics.patient_pattern=('",
    ],
)
def test_what_could_not_run_is_told_in_one_line_before_anything_starts(simulate, write_config, given):
    code, _, err = simulate("--config", write_config(), "--run-config", given)
    assert (code, "Traceback" in err) == (2, False), err


def test_help_answers_without_torch_ray_or_flower():
    code = (
        "import sys; sys.argv = ['flower-simulation', '--help']\n"
        "import fedvox_federation.cli_simulation as c\n"
        "try: c.main()\n"
        "except SystemExit as left: assert left.code == 0\n"
        "assert not {'torch', 'ray', 'flwr'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_demo_configuration_of_this_checkout_is_valid(checkout):
    from fedvox_federation.simulation import federation_config

    app = read_app(checkout)
    assert federation_config(app, app.run_config).name == "federation-demo"
