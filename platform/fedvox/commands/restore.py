"""`fedvox restore` and `jobs/diffusion_prior.py`."""

from __future__ import annotations

import json
import sys

from fedvox.commands.pretrain import AsJson, ConfigFile, DryRun, Overrides, Resume, ResumeChoice, check_resume
from fedvox.config import load_config, to_yaml
from fedvox.restoration.config import DiffusionPriorConfig
from fedvox.training.config import require_lasting


def train(
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: ResumeChoice = Resume.auto,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Trains a diffusion prior for `fedvox restore`, or resumes where the training stopped.

    Examples:
        python jobs/diffusion_prior.py --config jobs/configs/diffusion_prior_demo.yaml --set compute.num_workers=0

        ray job submit --working-dir . -- python jobs/diffusion_prior.py --config jobs/configs/diffusion_prior_demo.yaml
    """
    chosen = load_config(DiffusionPriorConfig, config, set_ or [])
    require_lasting(chosen.storage, "storage")
    if dry_run:
        from fedvox.restoration.estimate import describe, estimate

        found = estimate(chosen)
        told = {"schema": "fedvox.plan/1", **found, "config": chosen.model_dump(mode="json")}
        print(json.dumps(told) if as_json else f"{to_yaml(chosen)}\n{describe(found)}")
        return
    from fedvox.restoration import training
    from fedvox.training.ray_shell import run
    from fedvox.training.run_directory import RunDirectory

    directory = RunDirectory.of(chosen)
    check_resume(directory, resume)
    uri = directory.location.uri
    # `fedvox submit` follows the run by this line
    print(f"run directory: {uri}", file=sys.stderr if as_json else sys.stdout, flush=True)
    outcome = run(chosen, training)
    if as_json:
        print(json.dumps({"run_directory": uri, **outcome}))
        return
    print(f"finished at step {outcome['step']}")
    for name, value in outcome.items():
        if name.startswith("psnr"):
            print(f"  {name.replace('_', ' '):<24}{value:.2f} dB")
    print(f"prior        {uri}/final\ncurves       {uri}/figures/curves.png")
