"""`fedvox-federation epsilon` and `noise`."""

import subprocess
import sys

COST = ("--sample-rate", 0.02, "--steps", 500, "--delta", 1e-5)


def test_epsilon_and_noise_answer_each_other(federation_command):
    spent = federation_command("epsilon", "--noise-multiplier", 1, *COST, "--json").json["epsilon"]
    assert 2.77 < spent < 2.80
    found = federation_command("noise", "--epsilon", spent, *COST, "--json").json["noise_multiplier"]
    assert 0.99 < found < 1.01


def test_no_guarantee_is_null_in_json_and_inf_on_the_terminal(federation_command):
    assert federation_command("epsilon", "--noise-multiplier", 0, *COST, "--json").json["epsilon"] is None
    assert "ε = inf" in federation_command("epsilon", "--noise-multiplier", 0, *COST).out


def test_the_refused_accountant_leaves_with_two_and_its_reason(federation_command):
    done = federation_command("epsilon", "--noise-multiplier", 1, *COST, "--accountant", "gdp")
    assert done.code == 2
    assert "not a bound" in done.err
    assert "Use prv" in done.err


def test_a_missing_option_leaves_with_two(federation_command):
    assert federation_command("epsilon", "--noise-multiplier", 1).code == 2


def test_help_imports_neither_torch_nor_opacus():
    code = (
        "import sys, fedvox_federation.cli;"
        "print([m for m in ('torch', 'numpy', 'opacus', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
