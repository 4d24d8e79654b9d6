"""Training of a forecasting model through Ray, with a worker that is killed in it."""

import json
import os
import signal

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

VALUES = {
    "steps": 60, "global_batch_size": 4, "log_every": 1, "optimizer": {"lr": 1e-3, "warmup_steps": 2},
    "data": {"simulated": {"kind": "heart", "size": 16}}, "validation": {"every_steps": 60, "examples": 4},
    "checkpoint": {"every_steps": 10},
}  # fmt: skip


def test_a_killed_worker_costs_no_sample_and_the_number_of_workers_changes_nothing(pretraining, worker_pids):
    run = pretraining("", **VALUES)
    alone = pretraining("", name="alone", compute__num_workers=0, **VALUES)
    for one in (run, alone):
        one.job = "jobs/forecast.py"
        del one.config["model"]
    run.start()
    run.wait_for_step(15)
    os.kill(worker_pids()[-1], signal.SIGKILL)
    run.finish()
    alone.run()
    assert run.attempts() == [0, 1]
    assert [line["workers"] for line in run.lines("train")] == [2] * 60
    assert run.losses() == pytest.approx(alone.losses(), rel=5e-3)
    outcome = json.loads((run.directory / "outcome.json").read_text())
    assert outcome["step"] == 60
    assert outcome["relative_mse"] > 0
    assert json.loads((run.directory / "final" / "model.json").read_text())["unit"] == "cycle"
