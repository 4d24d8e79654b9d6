"""`fedvox submit`: `ray job submit`, followed to its end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedvox.errors import ConfigError, FedvoxError, RunError

RUN_DIRECTORY = re.compile(r"^run directory: (\S+)\s*$", re.MULTILINE)
PLAIN_LINE_S = 30.0
INTERRUPTED = 130
UNREACHABLE_S = 120.0

T = TypeVar("T")


def submit(
    entrypoint: Annotated[
        list[str], typer.Argument(help="What to run, after `--`: python jobs/pretrain.py …")
    ],
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray's job server, http://HOST:8265; default: $RAY_API_SERVER_ADDRESS or $RAY_ADDRESS."
        ),
    ] = None,
    working_dir: Annotated[
        Path, typer.Option(help="Uploaded to the cluster; its code is what runs.")
    ] = Path(),
    submission_id: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
) -> None:
    """Submits a job to Ray, follows it with a progress bar, and leaves with the job's own exit code.

    `ray job submit` itself only ever leaves with 0 or 1.

    Example:
        fedvox submit --address http://head:8265 -- python jobs/pretrain.py --config jobs/configs/demo.yaml
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not found:
        raise ConfigError(
            "no Ray job server named", "Give --address http://HOST:8265 or set RAY_API_SERVER_ADDRESS."
        )
    raise typer.Exit(submit_and_follow(entrypoint, found, working_dir, submission_id))


submit.context_settings = {"ignore_unknown_options": False}  # type: ignore[attr-defined]


def submit_and_follow(
    entrypoint: Sequence[str], address: str, working_dir: Path, submission_id: str | None = None
) -> int:
    """Runs `ray job submit` and follows the job to its end.

    Args:
        entrypoint: command and arguments of the job.
        address: Ray's job server, `http://HOST:PORT`.
        working_dir: folder that is uploaded.
        submission_id: name of the job; None lets Ray choose.

    Returns:
        The exit code of the job's driver.

    Raises:
        RunError: the job could not be submitted, or it vanished.
    """
    from ray.job_submission import JobSubmissionClient

    for _ in range(UPLOAD_TRIES):
        job = _submit(entrypoint, address, working_dir, submission_id)
        client = JobSubmissionClient(address)
        try:
            _follow(client, job)
        except KeyboardInterrupt:
            print(f"\nstopping {job} …", file=sys.stderr)
            client.stop_job(job)
            _follow(client, job)
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
            return INTERRUPTED
        details = _patiently(partial(client.get_job_info, job))
        if details.driver_exit_code is not None:
            return int(details.driver_exit_code)
        if str(details.status) == "SUCCEEDED":
            return 0
        if UPLOAD_LOST not in str(details.message) or submission_id is not None:
            break
        print("Ray lost the uploaded working directory; submitting again", file=sys.stderr)
    raise RunError(f"job {job} ended as {details.status}: {details.message}", "See `ray job logs`.")


UPLOAD_LOST = "Failed to download runtime_env file package"
"""Ray deletes an uploaded folder when the last job that used it ends, and may do so between the moment a new job
finds it there (and skips the upload) and the moment that job needs it."""
UPLOAD_TRIES = 3


def _submit(entrypoint: Sequence[str], address: str, working_dir: Path, submission_id: str | None) -> str:
    command = [
        str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", address, "--no-wait",
        "--working-dir", str(working_dir), *(["--submission-id", submission_id] if submission_id else []),
        "--", *entrypoint,
    ]  # fmt: skip
    print("$ ray job submit --working-dir", working_dir, "--", *entrypoint, file=sys.stderr)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = re.search(r"Job '([^']+)' submitted successfully", done.stdout)
    if found is None:
        raise RunError(
            f"`ray job submit` failed:\n{(done.stdout + done.stderr)[-2000:]}",
            f"Is there a Ray at {address}?",
        )
    return found.group(1)


def _follow(client: Any, job: str) -> None:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    shown, last_plain, run = 0, 0.0, None
    with bar:
        task = bar.add_task("starting", total=None, note="")
        while True:
            ended = _patiently(partial(client.get_job_status, job)).is_terminal()
            logs = _patiently(partial(client.get_job_logs, job))
            if len(logs) > shown:
                console.print(logs[shown:].rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
                shown = len(logs)
            run = run or _run_directory(logs)
            status = run and _status(run)
            if status:
                bar.update(
                    task,
                    description=status["phase"],
                    completed=status["step"],
                    total=status["steps"],
                    note=_note(status),
                )
                if not console.is_terminal and time.monotonic() - last_plain > PLAIN_LINE_S:
                    last_plain = time.monotonic()
                    console.print(
                        f"{status['phase']} {status['step']}/{status['steps']} {_note(status)}",
                        highlight=False,
                    )
            if ended:
                return
            time.sleep(1.0)


def _patiently(ask: Callable[[], T]) -> T:
    """The job server's answer; the job goes on while it does not answer, so a network that blinks ends nothing."""
    from requests.exceptions import RequestException

    began = time.monotonic()
    while True:
        try:
            return ask()
        except RequestException as error:
            if time.monotonic() - began > UNREACHABLE_S:
                raise RunError(
                    f"the job server has not answered for {UNREACHABLE_S:.0f} s ({error})",
                    "The job itself goes on if the cluster does: see `ray job list`, `ray job logs`, `fedvox status`.",
                ) from error
        time.sleep(2.0)


def _note(status: dict[str, Any]) -> str:
    parts = [
        f"{name} {status[key]:.4f}"
        for name, key in (("loss", "loss"), ("Dice", "ema_dice"))
        if status.get(key) is not None
    ]
    if status.get("seconds_left") is not None:
        parts.append(f"{status['seconds_left'] / 60:.1f} min left")
    return ", ".join(parts)


def _run_directory(logs: str) -> Any:
    found = RUN_DIRECTORY.search(logs)
    if found is None:
        return None
    from fedvox import storage

    return storage.locate(found.group(1))


def _status(run: Any) -> dict[str, Any] | None:
    """The run's status, or None: this machine need not reach the run's storage to follow the job's log."""
    from fedvox import storage

    try:
        value: dict[str, Any] = json.loads(
            storage.read_bytes(run.child("status.json"), retry=storage.RetryPolicy(deadline_s=0))
        )
    except (FedvoxError, OSError, ValueError):
        return None
    return value
