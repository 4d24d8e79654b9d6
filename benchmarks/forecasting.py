"""Forecasting methods on simulated patients whose future is known: the study, and what the methods cost.

    python benchmarks/forecasting.py study --out runs/forecasting --seeds 0 1 2 --max-minutes 5
    python benchmarks/forecasting.py report --out runs/forecasting --images docs/images
    python benchmarks/forecasting.py solvers --out runs/forecasting
    python benchmarks/forecasting.py cost

`study` trains what is not done yet and can be stopped and started again at any time. `--dry-run` lists what it would
train.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "platform")]

from fedvox.errors import FedvoxError  # noqa: E402
from fedvox.forecasting.baselines import BASELINES  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="train and judge what is not done yet")
    study.add_argument("--out", required=True)
    study.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    study.add_argument("--only", nargs="+", default=["must", "more"], choices=["must", "more"])
    study.add_argument("--max-minutes", type=float, default=float("inf"))
    study.add_argument("--dry-run", action="store_true")
    report = commands.add_parser("report", help="tables and figures of what is done")
    report.add_argument("--out", required=True)
    report.add_argument("--images", type=Path)
    report.add_argument(
        "--strict", action="store_true", help="fail where a claim does not hold or was not measured"
    )
    solvers = commands.add_parser(
        "solvers", help="steps of the solvers, and how well the spread tells the error"
    )
    solvers.add_argument("--out", required=True)
    solvers.add_argument("--patients", type=int, default=64)
    cost = commands.add_parser("cost", help="step time and peak memory of the methods")
    cost.add_argument("--size", type=int, default=16)
    cost.add_argument("--batch", type=int, default=8)
    cost.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    try:
        {"study": run_study, "report": report_study, "solvers": compare_solvers, "cost": measure_cost}[
            arguments.command
        ](arguments)
    except FedvoxError as error:
        sys.exit(f"error: {error}")


def run_study(arguments: argparse.Namespace) -> None:
    from fedvox import storage
    from fedvox.forecasting.study.cells import MORE, MUST, SETS, Cell, result_of, run_cell

    pairs = [
        pair for name, group in (("must", MUST), ("more", MORE)) if name in arguments.only for pair in group
    ]
    cells = [Cell(data, method, 0) for data in SETS for method in BASELINES]
    cells += [Cell(data, method, seed) for seed in arguments.seeds for data, method in pairs]
    todo = [cell for cell in cells if not storage.exists(result_of(cell, arguments.out))]
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are done")
    if arguments.dry_run:
        print("\n".join(cell.name for cell in todo))
        return
    began = time.monotonic()
    for cell in todo:
        if time.monotonic() - began > 60 * arguments.max_minutes:
            print("time is over; the same command goes on from here")
            return
        found = run_cell(cell, arguments.out)
        every = next(iter(found["conditions"].values()))
        ratio = sum(every["mse"]) / sum(every["mse_lci"])
        print(
            f"{cell.name:<32} {found['trained_cpu_s']:6.0f} CPU s   error relative to LCI {ratio:.3f}",
            flush=True,
        )


def report_study(arguments: argparse.Namespace) -> None:
    from fedvox import storage
    from fedvox.forecasting.study import pictures, tables
    from fedvox.forecasting.study.cells import METHODS, Cell
    from fedvox.forecasting.study.summary import read_cells, verdicts
    from fedvox.training.figures import save_figure

    cells = read_cells(arguments.out)
    for table in (tables.error_table, tables.trust_table, tables.futures_table, tables.claim_table):
        print(*table(cells), "", sep="\n")
    seconds = [value["trained_cpu_s"] for cell, value in cells.items() if cell.method in METHODS]
    print(f"{len(seconds)} trainings, {sum(seconds) / 60:.0f} CPU minutes in all")
    if arguments.images is not None:
        folder = storage.locate(str(arguments.images))
        save_figure(pictures.relative_errors(cells), folder.child("forecast_errors.png"))
        for data in ("heart-irregular", "brain"):
            trained = {
                cell.method for cell in cells if cell.data == data and cell.seed == 0
            } - BASELINES.keys()
            methods = [method for method in ("tfm", "cronos") if method in trained]
            figure = pictures.examples(arguments.out, data, methods, range(4))
            save_figure(figure, folder.child(f"forecast_{data}.png"))
        if {Cell("response", "cronos-noisy", 0), Cell("response", "regression", 0)} <= cells.keys():
            figure = pictures.two_futures(arguments.out, "cronos-noisy")
            save_figure(figure, folder.child("forecast_futures.png"))
    if arguments.strict and any(told != "holds" for _, _, told in verdicts(cells)):
        sys.exit(1)


def compare_solvers(arguments: argparse.Namespace) -> None:
    import torch

    from fedvox.forecasting.config import SolverSection
    from fedvox.forecasting.flow import Forecaster
    from fedvox.forecasting.metrics import mean_squared_error
    from fedvox.forecasting.release import flow_of, load_release
    from fedvox.forecasting.study.cells import conditions
    from fedvox.forecasting.study.summary import read_cells

    torch.set_num_threads(1)
    for cell in sorted(read_cells(arguments.out), key=str):
        if cell.method != "cronos" or cell.seed != 0:
            continue
        network, info = load_release(f"{arguments.out}/runs/{cell.name}")
        _, asked = next(iter(conditions(cell.data, arguments.patients).values()))
        given = (asked.scans, asked.times, asked.valid, asked.target_time)
        lci = mean_squared_error(BASELINES["lci"](*given), asked.truth).sum()
        for name, steps in (
            ("euler", 1), ("euler", 2), ("euler", 4), ("euler", 10), ("midpoint", 1), ("midpoint", 2), ("midpoint", 5),
            ("adaptive", 1),
        ):  # fmt: skip
            for aggregate in ("mean", "last"):
                solver = SolverSection(name=name, steps=steps, aggregate=aggregate)
                began = time.process_time()
                error = mean_squared_error(
                    Forecaster(network, flow_of(info), solver, info.trust)(*given), asked.truth
                ).sum()
                spent = (time.process_time() - began) / arguments.patients * 1000
                print(
                    f"{cell.data:<16} {name:<9} {steps:>2} {aggregate:<5} {error / lci:.3f}  {spent:6.1f} ms",
                    flush=True,
                )
        forecaster = Forecaster(network, flow_of(info), SolverSection(), info.trust)
        draws = forecaster.draws(*given, count=8, seed=0)
        mean, spread = draws.mean(dim=0), draws.std(dim=0)
        inside = torch.stack([spread.flatten(), (mean - asked.truth).abs().flatten()])
        ranks = inside.argsort(dim=1).argsort(dim=1).double()
        correlation = float(torch.corrcoef(ranks)[0, 1])
        ratio = mean_squared_error(mean, asked.truth).sum() / lci
        print(
            f"{cell.data:<16} 8 draws: error {ratio:.3f}, rank correlation of spread and error {correlation:.2f}"
        )


def measure_cost(arguments: argparse.Namespace) -> None:
    """Each method in a process of its own, because a peak is a process's."""
    import subprocess

    from fedvox.forecasting.study.cells import METHODS

    print(f"{arguments.batch} patients of 4 scans of {arguments.size}³ voxels, one CPU thread")
    print("| method | parameters | training step, ms | forecast, ms a patient | peak memory, MiB |")
    print("|---|---|---|---|---|")
    for method in METHODS:
        command = [
            sys.executable,
            __file__,
            "_cost",
            method,
            *map(str, (arguments.size, arguments.batch, arguments.steps)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stdout.strip(), flush=True)


def one_cost(method: str, size: int, batch: int, steps: int) -> None:
    import resource

    import torch

    from fedvox.forecasting.config import FlowSection, NetworkSection, SolverSection
    from fedvox.forecasting.flow import Forecaster, flow_loss, path_point
    from fedvox.forecasting.release import build_network
    from fedvox.forecasting.simulation import SIMULATIONS, Schedule, Simulated
    from fedvox.forecasting.study.cells import METHODS

    torch.set_num_threads(1)
    flow = FlowSection(**METHODS[method])
    network = build_network(flow, NetworkSection(), 1)
    found = Simulated(SIMULATIONS["heart"], Schedule(), size=size).examples(range(batch))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator, times = torch.Generator(), []
    for _ in range(steps + 1):
        began = time.process_time()
        point = path_point(flow, found, generator)
        out = network(point.state, point.slots.images, point.slots.times, found.target_time, point.t)
        flow_loss(flow, out, point, found, network.velocity_scale).mean().backward()
        times.append(time.process_time() - began)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    began = time.process_time()
    Forecaster(network, flow, SolverSection())(found.scans, found.times, found.valid, found.target_time)
    forecast = (time.process_time() - began) / batch
    parameters = sum(p.numel() for p in network.parameters())
    step = 1000 * sorted(times[1:])[len(times[1:]) // 2]
    print(f"| {method} | {parameters:,} | {step:.0f} | {1000 * forecast:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["_cost"]:
        one_cost(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        main()
