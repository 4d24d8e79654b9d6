"""A federation with clinics that die, lie and stay silent: started as a process of its own by the tests.

    python faulty_federation.py CONFIG.json FAULTS.json

FAULTS maps `hospital/round` (hospitals from 1) to a fault of `FAULTS` below. A fault happens once: a marker in the
folder of the clinics says that it has. Everything else is the product's own apps, in Flower's own simulation.
"""

import dataclasses
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

CONFIG, PLAN = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])


def kill_this_process(*_args, **_kwargs):
    """As the kernel does when memory runs out: in the middle of training, with the steps booked."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang(*_args, **_kwargs):
    """For longer than any test, in the middle of training, with the steps booked."""
    (Path(CONFIG["clinics"]["folder"]) / "faults" / "hanging").touch()
    time.sleep(600)


def dawdle(whole):
    """Train, but not before the round's deadline."""

    def train(*args, **kwargs):
        time.sleep(float(CONFIG["server"]["deadline_s"]) + 10)
        return whole(*args, **kwargs)

    return train


def spoiled(reply, fault, folder):
    """What a clinic sends instead of its update."""
    from fedvox_federation.protocol import arrays_sha256

    if fault is None:
        return reply
    arrays = dict(reply.arrays)
    name = sorted(arrays)[0]
    if fault == "nan":
        arrays[name] = np.full_like(arrays[name], np.nan)
    elif fault == "huge":
        arrays = {key: value + np.float32(1e12) for key, value in arrays.items()}
        reply = dataclasses.replace(reply, update_sha256=arrays_sha256(arrays))
    elif fault == "shape":
        arrays[name] = np.zeros((*arrays[name].shape, 2), np.float32)
    elif fault == "replay":
        earlier = pickle.loads((folder / f"sent-{reply.clinic}-1").read_bytes())
        return dataclasses.replace(
            earlier, round_number=reply.round_number, epsilon_spent=reply.epsilon_spent
        )
    return dataclasses.replace(reply, arrays=arrays)


client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """The product's clinic, with a fault before or after it."""
    from fedvox_federation.client.clinic import take_part
    from fedvox_federation.client.sites import simulated_clinic
    from fedvox_federation.config import FederationConfig
    from fedvox_federation.dp_sgd.training import PrivateTrainer
    from fedvox_federation.protocol import decode_order, encode_reply

    config = FederationConfig(**CONFIG)
    number = int(context.node_config["partition-id"])
    order, arrays = decode_order(message.content)
    key = f"{number + 1}/{order.round_number}"
    folder = Path(config.clinics.folder) / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / key.replace("/", "-")
    fault = PLAN.get(key) if not marker.exists() else None
    marker.touch()
    if fault == "raise":
        raise OSError("/data/patients/Meyer_Anna.nii.gz: permission denied")
    whole = PrivateTrainer.train
    if fault in ("kill", "hang", "dawdle"):
        PrivateTrainer.train = {"kill": kill_this_process, "hang": hang, "dawdle": dawdle(whole)}[fault]
    reply = take_part(arrays, order, simulated_clinic(config, number))
    PrivateTrainer.train = whole
    (folder / f"sent-{reply.clinic}-{order.round_number}").write_bytes(pickle.dumps(reply))
    return Message(content=encode_reply(spoiled(reply, fault, folder)), reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """The product's server."""
    from fedvox_federation.config import FederationConfig
    from fedvox_federation.server.app import serve as serve_federation

    serve_federation(grid, FederationConfig(**CONFIG))


if __name__ == "__main__":
    from flwr.simulation import run_simulation

    hospitals = CONFIG["clinics"]["partition"]["hospitals"]
    run_simulation(
        server,
        client,
        num_supernodes=int(os.environ.get("FAULTY_SUPERNODES", hospitals)),
        backend_config={
            "init_args": {
                "num_cpus": 2,
                "address": "local",
                "include_dashboard": False,
                "log_to_driver": False,
            },
            "client_resources": {"num_cpus": 1, "max_restarts": -1},
        },
    )
