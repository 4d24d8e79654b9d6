"""What a simulation asks of Ray."""

from fedvox_federation import simulation


def test_a_simulation_starts_its_own_ray_unless_one_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert simulation._complete({})["init_args"]["address"] == "local"
    named = {"init_args": {"address": "10.0.0.1:6379"}}
    assert simulation._complete(named)["init_args"]["address"] == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert "address" not in simulation._complete({})["init_args"]


def test_a_clinics_process_that_dies_is_started_again():
    found = simulation._complete({"client_resources": {"num_cpus": 2}})
    assert found["client_resources"] == {"num_cpus": 2, "max_restarts": -1}
