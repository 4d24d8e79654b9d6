"""`fedvox-federation dp-preflight`."""

MODEL = ("dp-preflight", "--model", "mednext-v2-nano", "--patch", 16)


def test_a_safe_model_leaves_with_zero_and_its_errors(federation_command):
    done = federation_command(*MODEL, "--scope", "norm+head", "--mode", "hooks", "--json")
    assert done.code == 0
    assert done.json["safe"]
    assert 0 <= done.json["worst_error"] < 1e-4
    assert done.json["errors"]


def test_an_unsafe_loss_leaves_with_four_and_says_why(federation_command):
    done = federation_command(*MODEL, "--batch-dice", "--json")
    assert done.code == 4
    assert not done.json["safe"]
    assert "batch Dice" in done.err


def test_unknown_names_leave_with_two(federation_command):
    assert federation_command("dp-preflight", "--model", "unet").code == 2
    assert federation_command(*MODEL, "--mode", "ghost").code == 2
    assert federation_command(*MODEL, "--scope", "head").code == 2
