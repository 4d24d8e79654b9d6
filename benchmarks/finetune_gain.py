"""Fine-tuning against training from scratch on sites that the pretraining has never seen: steps to the same Dice.

    python benchmarks/finetune_gain.py [--target scanners] [--seeds 1 2 3] [--steps 120] [--pretrained RUN]
                                       [--figure PNG] [--json FILE]

Pretraining is `make pretrain`'s run: the MNI152 brain as sites a, b and c scan it. It is made here, without Ray, if
there is none under $FEDVOX_HOME/runs/demo. The target is sites of `fedvox.data.demo_sites`, all with other heads:
`scanners` are e, f and g, which scan the same sequence on scanners beyond the pretraining's ranges; `sequence` puts d
in g's place, where gray and white matter have changed their contrast. Two cases of each site are trained on, one of
each is held out for the Dice.

Per seed three runs of the same steps, samples, optimiser and schedule: from scratch; fine-tuned with the pretrained
heads (structures matched by name); fine-tuned with new heads, as for other structures. The seed decides on initial
weights and on the samples; 0 is not among them, for it is the pretraining's, and new heads of the same seed would
begin where the pretrained ones began. Counted are the steps until a validation first reaches the Dice with which the
scratch run of that seed ends; the goal is at most half of the scratch run's steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fedvox.commands.demo import prepare
from fedvox.config import load_config, validate
from fedvox.data.demo_sites import NEW_SCANNERS, write_new_sites
from fedvox.training.config import PretrainConfig, expand
from fedvox.training.figures import PALETTE, STYLE
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.ray_shell import run
from fedvox.training.run_directory import RunDirectory

GOAL = 0.5
TARGETS = {"scanners": NEW_SCANNERS, "sequence": ("site_d", "site_e", "site_f")}
KINDS = {
    "scratch": "from scratch",
    "new_heads": "fine-tuned, new heads",
    "by_name": "fine-tuned, pretrained heads",
}
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Curve:
    """One run's validations.

    Attributes:
        kind: a key of `KINDS`.
        seed: of the run.
        steps: of each validation.
        dice: mean over gray and white matter and the held-out cases.
        seconds: that the run took.
    """

    kind: str
    seed: int
    steps: tuple[int, ...]
    dice: tuple[float, ...]
    seconds: float

    def first_step_with(self, dice: float) -> int | None:
        """The first validated step with at least this Dice; None if there is none."""
        return next((step for step, value in zip(self.steps, self.dice, strict=True) if value >= dice), None)


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.WARNING)
    os.environ.setdefault("FEDVOX_HOME", str(Path("~/.fedvox").expanduser()))
    store = expand(f"$FEDVOX_HOME/stores/mni152-new-{arguments.target}")
    write_new_sites(store, TARGETS[arguments.target])
    if arguments.data_only:
        print(f"written: {store}")
        return
    pretrained = arguments.pretrained or _pretrained(arguments.threads)
    curves = [_train(kind, seed, store, pretrained, arguments) for kind in KINDS for seed in arguments.seeds]
    result = _result(curves, arguments, pretrained)
    _draw(curves, result, Path(arguments.figure))
    Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(_table(result))
    sys.exit(0 if result["reached"] else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, default="scanners")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=12, help="steps between validations")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak, of all runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pretrained", help="run directory; default: the demo's")
    parser.add_argument("--figure", default="finetune_gain.png")
    parser.add_argument("--json", default="finetune_gain.json")
    parser.add_argument("--data-only", action="store_true", help="write the target's store and end")
    return parser.parse_args()


def _pretrained(threads: int) -> str:
    """The demo's run directory; pretrains if there is none."""
    prepare(Path(expand("$FEDVOX_HOME/stores/mni152-sites")), fresh=False)
    config = load_config(
        PretrainConfig,
        ROOT / "jobs/configs/demo.yaml",
        ["compute.num_workers=0", f"compute.torch_threads={threads}"],
    )
    folder = RunDirectory.of(config)
    if folder.read_json("final", "model.json") is None:
        print("pretraining the demo's network", file=sys.stderr, flush=True)
        run(config)
    return folder.location.uri


def _train(kind: str, seed: int, store: str, pretrained: str, arguments: argparse.Namespace) -> Curve:
    """One run, or what an earlier call of this script left of it."""
    name = f"gain-{arguments.target}-{kind}-{seed}-{arguments.steps}-{arguments.lr:g}"
    values: dict[str, Any] = {
        "name": name, "storage": "$FEDVOX_HOME/runs", "seed": seed, "steps": arguments.steps, "log_every": 1,
        "data": {"store": store, "patch_size": [32, 32, 32], "augment_on": "cpu", "loader_threads": 1,
                 "validation_cases": [f"{site}_03" for site in TARGETS[arguments.target]]},
        "model": {"name": "mednext-v2-tiny"},
        "optimizer": {"lr": arguments.lr, "warmup_steps": arguments.steps // 10},
        "validation": {"every_steps": arguments.every, "at_start": True, "overlap": 0.0, "ema": 0.0, "overlays": 0},
        "checkpoint": {"every_steps": arguments.steps},
        "compute": {"num_workers": 0, "torch_threads": arguments.threads},
    }  # fmt: skip
    config: PretrainConfig
    if kind == "scratch":
        config = validate(PretrainConfig, values, source=name)
    else:
        heads = {"new_heads": "new", "by_name": "by_name"}[kind]
        values |= {"init_from": pretrained, "transfer": {"heads": heads}}
        config = validate(FinetuneConfig, values, source=name)
    folder = RunDirectory.of(config)
    began = time.monotonic()
    if folder.read_json("outcome.json") is None:
        run(config)
    lines = [line for line in folder.metrics() if line["kind"] == "validation"]
    curve = Curve(
        kind, seed, tuple(line["step"] for line in lines), tuple(line["dice"] for line in lines),
        round(time.monotonic() - began, 1),
    )  # fmt: skip
    print(f"{name}: Dice {curve.dice[0]:.3f} -> {curve.dice[-1]:.3f}, {curve.seconds:.0f} s", file=sys.stderr)
    return curve


def _result(curves: list[Curve], arguments: argparse.Namespace, pretrained: str) -> dict[str, Any]:
    """Steps to the scratch run's Dice, per seed and kind, and whether the goal is reached."""
    final = {curve.seed: curve.dice[-1] for curve in curves if curve.kind == "scratch"}
    rows = [
        {"kind": curve.kind, "seed": curve.seed, "final_dice": curve.dice[-1], "scratch_dice": final[curve.seed],
         "steps_to_scratch_dice": curve.first_step_with(final[curve.seed])}
        for curve in curves if curve.kind != "scratch"
    ]  # fmt: skip
    share = [
        None if row["steps_to_scratch_dice"] is None else row["steps_to_scratch_dice"] / arguments.steps
        for row in rows
    ]
    return {
        "schema": "fedvox.finetune_gain/2",
        "target": arguments.target,
        "steps": arguments.steps,
        "lr": arguments.lr,
        "pretrained": pretrained,
        "goal": GOAL,
        "reached": all(value is not None and value <= GOAL for value in share),
        "runs": [{**row, "share_of_steps": value} for row, value in zip(rows, share, strict=True)],
        "curves": [asdict(curve) for curve in curves],
    }


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'':<30}{'seed':>5}{'Dice, scratch':>15}{'Dice, fine-tuned':>18}{'steps to scratch':>18}"]
    for row in result["runs"]:
        steps = row["steps_to_scratch_dice"]
        told = "never" if steps is None else f"{steps} ({row['share_of_steps']:.0%})"
        lines.append(
            f"{KINDS[row['kind']]:<30}{row['seed']:>5}{row['scratch_dice']:>15.3f}{row['final_dice']:>18.3f}{told:>18}"
        )
    verdict = "reached" if result["reached"] else "NOT reached"
    return "\n".join(
        [*lines, f"goal of at most {GOAL:.0%} of {result['steps']} steps, in every run: {verdict}"]
    )


def _draw(curves: list[Curve], result: dict[str, Any], path: Path) -> None:
    """Dice over steps: a line per run, and the mean of each kind."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for color, (kind, label) in zip(PALETTE, KINDS.items(), strict=False):
            runs = [curve for curve in curves if curve.kind == kind]
            for curve in runs:
                axes.plot(curve.steps, curve.dice, color=color, alpha=0.35, lw=0.9)
            means = [statistics.mean(values) for values in zip(*(curve.dice for curve in runs), strict=True)]
            axes.plot(runs[0].steps, means, color=color, lw=2.2, label=f"{label}, mean of {len(runs)} seeds")
        level = statistics.mean(curve.dice[-1] for curve in curves if curve.kind == "scratch")
        axes.axhline(level, color="black", lw=0.8, ls=":")
        axes.axvline(GOAL * result["steps"], color="black", lw=0.8, ls=":")
        axes.annotate(
            "scratch, at its end", (0, level), xytext=(2, 3), textcoords="offset points", fontsize=8
        )
        axes.annotate("half the steps", (GOAL * result["steps"], 0.02), xytext=(3, 0), textcoords="offset points",
                      fontsize=8)  # fmt: skip
        axes.set(
            title=f"Dice on held-out cases of {', '.join(TARGETS[result['target']])}",
            xlabel="step",
            ylabel="mean Dice",
            ylim=(0, 1),
        )
        axes.legend(loc="lower right")
        figure.savefig(path, facecolor="white", dpi=130)


if __name__ == "__main__":
    main()
