"""What a federation costs beside plain Flower, what a simulated hospital takes of memory, and a hundred of them.

    python benchmarks/federation.py                       # seconds per round against plain Flower, memory
    python benchmarks/federation.py --many 100            # so many simulated clinics on this machine
    python benchmarks/federation.py --json

Both sides run in Flower's simulation on the same store, network, noise and private training step, in turns. Plain is
what Flower's tutorial does with it: FedAvg's own loop, a client that loads the arrays, trains and returns them. Ours
adds attestation, ledger, reply cache, hashes, checks, tables and a state after each round. A round lasts from one
`configure_train` to the next; the first, in which processes import and check their model, is told apart.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
TOKEN = "FEDVOX_BENCHMARK"
STRUCTURES = ("background", "ball")
MIB = 2**20


def write_material(folder: Path, patients: int, size: int, network: str, patch: int) -> None:
    """Noisy balls, and untrained weights."""
    import numpy as np

    from fedvox.data.records import StoreMeta
    from fedvox.data.store_writer import StoreWriter
    from fedvox.models.registry import build_model
    from fedvox.storage import locate
    from fedvox.training.release import ModelInfo, write_release

    meta = StoreMeta("balls", ("T1",), "MR", STRUCTURES, {"all": (0, 1)}, "zscore", (1.0, 1.0, 1.0))
    writer = StoreWriter.create(str(folder / "store"), meta)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    for number in range(patients):
        rng = np.random.default_rng(number)
        centre = rng.integers(6, size - 6, 3).reshape(3, 1, 1, 1)
        label = (((grid - centre) ** 2).sum(0) < 25).astype(np.uint8)
        image = (label * 300.0 + rng.normal(0, 40, label.shape)).astype(np.int16)
        writer.add_case(
            f"p{number:04d}", image[None], label, source="all", label_set="all", spacing_mm=(1.0, 1.0, 1.0)
        )
    writer.finish()
    info = ModelInfo(
        name=network, options={"deep_supervision": True}, structures=STRUCTURES, channel_names=("T1",),
        patch_size=(patch,) * 3, spacing_mm=(1.0, 1.0, 1.0), normalization="zscore", intensity=None, modality="MR",
    )  # fmt: skip
    write_release(build_model(network, in_channels=1, classes=2), info, locate(str(folder / "weights")))


def configuration(folder: Path, name: str, clinics: int, rounds: int, steps: int) -> dict[str, Any]:
    return {
        "name": name, "rounds": rounds, "pretrained": str(folder / "weights"), "output": str(folder / "runs"),
        "task": {"patches_per_patient": 1},
        "training": {"steps": steps, "device": "cpu", "evaluate": "never", "scope": "norm+head"},
        "privacy": {"expected_batch": 2.0, "delta": 1e-3, "largest_sample_rate": 0.9},
        "clinics": {
            "store": str(folder / "store"), "folder": str(folder / "clinics"), "held_out_fraction": 0.0,
            "partition": {"kind": "iid", "hospitals": clinics},
        },
    }  # fmt: skip


# One simulation, in a process of its own


def simulate(side: str, config_file: Path, result: Path, actors: int) -> None:
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    values = json.loads(config_file.read_text())
    stamps: list[float] = []
    configure = FedAvg.configure_train

    def stamped(self: Any, *args: Any, **kwargs: Any) -> Any:
        stamps.append(time.monotonic())
        return configure(self, *args, **kwargs)

    FedAvg.configure_train = stamped
    server, client = (ours if side == "ours" else plain)(values)
    run_simulation(
        server,
        client,
        num_supernodes=values["clinics"]["partition"]["hospitals"],
        backend_config={
            "init_args": {
                "num_cpus": actors,
                "address": "local",
                "include_dashboard": False,
                "log_to_driver": False,
            },
            "client_resources": {"num_cpus": 1, "max_restarts": -1},
        },
    )
    result.write_text(json.dumps([after - before for before, after in itertools.pairwise(stamps)]))


def ours(values: dict[str, Any]) -> tuple[Any, Any]:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    from fedvox_federation.config import FederationConfig
    from fedvox_federation.server.app import serve

    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:  # noqa: ARG001 - Flower passes both
        serve(grid, FederationConfig(**values))

    @client.train()
    def train(message: Any, context: Any) -> Any:
        from flwr.app import Message

        from fedvox_federation.client.clinic import take_part
        from fedvox_federation.client.sites import simulated_clinic
        from fedvox_federation.config import FederationConfig
        from fedvox_federation.protocol import decode_order, encode_reply

        order, arrays = decode_order(message.content)
        clinic = simulated_clinic(FederationConfig(**values), int(context.node_config["partition-id"]))
        return Message(content=encode_reply(take_part(arrays, order, clinic)), reply_to=message)

    return server, client


def plain(values: dict[str, Any]) -> tuple[Any, Any]:
    from flwr.app import Array, ArrayRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    from fedvox_federation.client.clinic import plan_noise
    from fedvox_federation.client.model import build
    from fedvox_federation.client.sites import simulated_clinic
    from fedvox_federation.config import FederationConfig

    config = FederationConfig(**values)
    first = simulated_clinic(config, 0)
    planned = plan_noise(config, len(first.task.patients(1)), first.standing, simulation=True)
    noise, rate = planned.noise.noise_multiplier, planned.sample_rate
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:  # noqa: ARG001 - Flower passes both
        start = {name: Array(value) for name, value in build(config).federated.arrays().items()}
        strategy = FedAvg(fraction_evaluate=0.0)
        strategy.start(grid=grid, initial_arrays=ArrayRecord(start), num_rounds=config.rounds)

    @client.train()
    def train(message: Any, context: Any) -> Any:
        from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

        from fedvox_federation.client.clinic import build_optimizer
        from fedvox_federation.client.sites import simulated_clinic
        from fedvox_federation.config import FederationConfig
        from fedvox_federation.dp_sgd.training import PrivacySettings, PrivateTrainer

        config = FederationConfig(**values)
        task = simulated_clinic(config, int(context.node_config["partition-id"])).task
        task.model.load({name: array.numpy() for name, array in message.content["arrays"].items()})
        patients = task.patients(int(message.content["config"]["server-round"]))
        settings = PrivacySettings(
            noise_multiplier=noise,
            clipping_norm=config.privacy.clipping_norm,
            sample_rate=rate,
            patients=len(patients),
        )
        network = task.model.network
        optimizer = build_optimizer(config.training, network)
        PrivateTrainer(network, optimizer, task.loss, settings).train(patients, config.training.steps)
        arrays = ArrayRecord({name: Array(value) for name, value in task.model.arrays().items()})
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": len(patients)})}
        return Message(content=RecordDict(content), reply_to=message)

    return server, client


# Around it


class Memory:
    """Peak proportional set size of a run's processes, by kind, sampled every two seconds."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.peaks: dict[str, list[float]] = {}
        self._stop = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(2.0):
            now: dict[str, list[float]] = defaultdict(list)
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, ValueError):  # it has ended, or is somebody else's
                    if f"{TOKEN}={self.token}".encode() in (process / "environ").read_bytes().split(b"\0"):
                        now[_kind(process)].append(_pss_mib(process))
            for kind, values in now.items():
                if sum(values) > sum(self.peaks.get(kind, [])):
                    self.peaks[kind] = values


def _kind(process: Path) -> str:
    command = (process / "cmdline").read_bytes().decode(errors="replace")
    if "ClientAppActor" in command:
        return "clinics"
    return "server" if "--side" in command else "ray"


def _pss_mib(process: Path) -> float:
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no Pss")


def measure(
    folder: Path, side: str, number: int, *, clinics: int, rounds: int, steps: int, actors: int
) -> dict[str, Any]:
    """One run of one side: seconds of its rounds and peak memory."""
    name = f"{side}-{number}"
    config, result = folder / f"{name}.json", folder / f"{name}-seconds.json"
    config.write_text(json.dumps(configuration(folder, name, clinics, rounds, steps)))
    environment = {**os.environ, **QUIET, TOKEN: f"{os.getpid()}-{name}", "OMP_NUM_THREADS": "1"}
    memory = Memory(environment[TOKEN])
    command = [sys.executable, __file__, "--side", side, str(config), str(result), "--actors", str(actors)]
    started = time.monotonic()
    with memory.watched(), (folder / f"{name}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit((folder / f"{name}.log").read_text()[-4000:])
    seconds = json.loads(result.read_text())
    return {"seconds": seconds, "whole_s": time.monotonic() - started, "mib": memory.peaks}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ours against plain Flower, in turns."""
    write_material(folder, 10 * options.clinics, 40, options.network, options.patch)
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    for number in range(options.repeats):
        for side in runs if number % 2 == 0 else reversed(runs):
            runs[side].append(
                measure(
                    folder,
                    side,
                    number,
                    clinics=options.clinics,
                    rounds=options.rounds + 2,
                    steps=options.steps,
                    actors=options.actors,
                )
            )
    later = {side: [s for run in found for s in run["seconds"][1:]] for side, found in runs.items()}
    first = {side: statistics.median(run["seconds"][0] for run in found) for side, found in runs.items()}
    median = {side: statistics.median(values) for side, values in later.items()}
    return {
        "clinics": options.clinics, "actors": options.actors, "steps": options.steps, "network": options.network,
        "patch": options.patch, "rounds_timed": len(later["ours"]), "seconds_per_round": median,
        "ratio": median["ours"] / median["plain"], "first_round_s": first, "all": later,
        "clinic_process_mib": {side: max(max(run["mib"]["clinics"]) for run in found) for side, found in runs.items()},
        "ray_mib": max(sum(run["mib"]["ray"]) for run in runs["ours"]),
        "server_mib": max(sum(run["mib"]["server"]) for run in runs["ours"]),
    }  # fmt: skip


def many(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A crowd of clinics, each with ledger and checks."""
    from fedvox_federation.privacy.ledger import verify

    write_material(folder, 2 * options.many, 24, "mednext-v2-nano", 16)
    run = measure(folder, "ours", 0, clinics=options.many, rounds=3, steps=2, actors=options.actors)
    ledgers = sorted((folder / "clinics").glob("ours-0/clinics/*/ledger"))
    for ledger in ledgers:
        verify(ledger)
    lines = [
        json.loads(line) for line in (folder / "runs" / "ours-0" / "rounds.jsonl").read_text().splitlines()
    ]
    disk = sum(path.stat().st_size for path in (folder / "clinics").rglob("*") if path.is_file())
    return {
        "clinics": options.many, "actors": options.actors, "first_round_s": run["seconds"][0],
        "seconds_per_round": run["seconds"][1], "whole_s": run["whole_s"],
        "accepted": [line["accepted"] for line in lines], "ledgers_verified": len(ledgers),
        "clinic_processes_mib": sum(run["mib"]["clinics"]), "ray_mib": sum(run["mib"]["ray"]),
        "server_mib": sum(run["mib"]["server"]), "disk_kib_per_clinic": disk / 1024 / options.many,
    }  # fmt: skip


def told(found: dict[str, Any]) -> str:
    if "ratio" not in found:
        return "\n".join(
            f"{key:22} {value:.1f}" if isinstance(value, float) else f"{key:22} {value}"
            for key, value in found.items()
        )
    seconds, first = found["seconds_per_round"], found["first_round_s"]
    return (
        f"{found['clinics']} clinics on {found['actors']} processes, {found['network']}, patch {found['patch']}³, "
        f"{found['steps']} private steps a round, {found['rounds_timed']} rounds a side\n"
        f"seconds per round: plain Flower {seconds['plain']:.2f}, ours {seconds['ours']:.2f}, "
        f"ratio {found['ratio']:.3f}\n"
        f"first round: plain {first['plain']:.1f}, ours {first['ours']:.1f}\n"
        f"peak memory: a clinic's process {found['clinic_process_mib']['ours']:.0f} MiB (plain "
        f"{found['clinic_process_mib']['plain']:.0f}), server {found['server_mib']:.0f}, Ray {found['ray_mib']:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clinics", type=int, default=4)
    parser.add_argument(
        "--actors", type=int, default=2, help="clinics that train at a time, each on one core"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed ones of a run")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--network", default="mednext-v2-nano")
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, config, result = options.side
        simulate(side, Path(config), Path(result), options.actors)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = (many if options.many else compare)(options, Path(folder))
    print(json.dumps(found, indent=1) if options.json else told(found))


if __name__ == "__main__":
    main()
