"""The Flower ServerApp's body: from a configuration to finished rounds, or to an error that says what to do.

`federation/flower_entry.py` holds the app itself, since Flower reads that file alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

from fedvox import storage
from fedvox.data.store import BrickStore
from fedvox.errors import CheckpointError, FedvoxError, RunError
from fedvox.inference.device import choose_device
from fedvox.storage import Location
from fedvox.training.config import expand
from fedvox.training.release import write_release
from fedvox_federation.client.model import SegmentationModel, build
from fedvox_federation.client.tasks import Cohort, SegmentationTask
from fedvox_federation.config import FederationConfig
from fedvox_federation.logs import show_log
from fedvox_federation.protocol import Arrays
from fedvox_federation.server.checks import Remembered, ReplyChecker
from fedvox_federation.server.figures import draw_curves
from fedvox_federation.server.journal import Journal
from fedvox_federation.server.rounds import Federation, Judge
from fedvox_federation.server.snapshot import Snapshot, load_snapshot
from fedvox_federation.server.standings import AttestationRegistry, ProfileRegistry, Registry
from fedvox_federation.server.strategies import aggregator_of

log = logging.getLogger(__name__)


def serve(grid: Any, config: FederationConfig) -> None:
    """Run a federation, or go on with it where a server was stopped.

    Args:
        grid: Flower's.
        config: of the federation.

    Raises:
        FedvoxError: with what to do; `status.json` of the run says it too.
    """
    show_log()
    folder = storage.locate(expand(config.output)).child(config.name)
    with only_server(folder) as may_write:
        journal = Journal(folder)
        with _told_at_the_end(journal, config):
            model = build(config)
            federation, start = _federation(grid, config, journal, model, may_write)
            if start.round_number:
                log.info("going on after round %d of %d", start.round_number, config.rounds)
            log.info("run directory %s", folder.uri)
            arrays = federation.run()
            may_write()
            _release(config, journal, model, arrays)


class TakenOver(RunError):
    """Another server works on this run now."""


@contextlib.contextmanager
def only_server(folder: Location) -> Iterator[Callable[[], None]]:
    """Keep a second server away from a run, whose rounds it would count and write as well.

    Args:
        folder: the run directory.

    Yields:
        What raises `TakenOver` once another server has taken the run, because this one had stood still for too long.

    Raises:
        TakenOver: a living server has it.
    """
    taken: list[storage.Holder] = []

    def may_write() -> None:
        if taken:
            raise TakenOver(
                f"run {folder.uri} was taken over by {taken[0]}",
                "This server had stood still for too long; the other one goes on.",
            )

    try:
        with storage.lease(folder.child("server.json"), taken.append):
            yield may_write
    except storage.Held as other:
        raise TakenOver(
            f"run {folder.uri} has a server already: {other}",
            f"Watch it with `fedvox-federation status {folder.uri}`, or give this run another name (name=…).",
        ) from other


def _federation(
    grid: Any,
    config: FederationConfig,
    journal: Journal,
    model: SegmentationModel,
    may_write: Callable[[], None],
) -> tuple[Federation, Snapshot]:
    simulation, aggregator = is_simulation(grid), aggregator_of(config)
    for note in aggregator.notes(private=config.privacy.policy.name != "none"):
        log.warning("%s", note)
    start = load_snapshot(journal.state) or Snapshot(0, model.federated.arrays())
    journal.begin(config, after_round=start.round_number)
    _check_fits(start, model, journal)
    registry: Registry = (
        ProfileRegistry(config.clinics.profiles)
        if simulation
        else AttestationRegistry.load(config.study, config.server.trust)
    )
    remembered = Remembered.from_plain(start.memory) if start.memory else None
    checker = ReplyChecker(config, registry, simulation=simulation, remembered=remembered)
    federation = Federation(
        config, grid, aggregator, checker, journal, start,
        base_sha256=model.federated.base_sha256, judge=_judge(config, model), may_write=may_write,
    )  # fmt: skip
    return federation, start


def is_simulation(grid: Any) -> bool:
    """Whether the clinics are simulated in this process. Nothing that is sent to the server decides it."""
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


def _judge(config: FederationConfig, model: SegmentationModel) -> Judge | None:
    """Dice of the global model on the study's own cases."""
    if config.server.validation_store is None:
        return None
    store = BrickStore.open(expand(config.server.validation_store))
    everybody: dict[str, tuple[int, ...]] = {case_id: (row,) for row, case_id in enumerate(store.case_ids)}
    device = choose_device(config.training.device)
    task = SegmentationTask(config, model, store, Cohort(training={}, held_out=everybody), device)

    def judge(arrays: Arrays) -> float:
        model.federated.load(arrays)
        return task.evaluate()

    return judge


def _check_fits(start: Snapshot, model: SegmentationModel, journal: Journal) -> None:
    expected = {name: value.shape for name, value in model.federated.arrays().items()}
    if {name: value.shape for name, value in start.arrays.items()} != expected:
        raise CheckpointError(
            f"{journal.state.uri}: the saved model has other parameters than the configured one",
            "Use the pretrained weights and training.scope that the run began with.",
        )


def _release(config: FederationConfig, journal: Journal, model: SegmentationModel, arrays: Arrays) -> None:
    """The final model as `fedvox predict` and `fedvox finetune` take it."""
    model.federated.load(arrays)
    if model.info is None:
        log.warning(
            "no release is written: the pretrained weights are none, and do not say how images are prepared"
        )
        return
    options = {**model.info.options, "deep_supervision": False}  # as everybody has built it
    if "patch_size" in options:
        options["patch_size"] = model.patch_size
    last = journal.rounds[-1] if journal.rounds else {}
    training, privacy = config.training, config.privacy
    info = dataclasses.replace(
        model.info,
        options=options,
        structures=model.structures,
        patch_size=model.patch_size,
        training={},  # of a pretraining
        data={},
        provenance={
            "run": config.name,
            "study": config.study,
            "step": f"{len(journal.rounds)} rounds of {training.steps} in each clinic, {config.strategy.name}",
            "federated": f"{training.scope}, {training.optimizer}, lr {training.lr:g}",
            "clinics": len({row["clinic"] for row in journal.clinics if row["weight"]}),
            "privacy": f"per patient, clipped to {privacy.clipping_norm:g}, noise policy {privacy.policy.name}",
            "epsilon": last.get("epsilon"),
            "pretrained": model.info.provenance.get("sha256"),
        },
    )
    write_release(model.merged(), info, journal.run.child("final"))


@contextlib.contextmanager
def _told_at_the_end(journal: Journal, config: FederationConfig) -> Iterator[None]:
    """Draws the curves and says how the run ended, however it did."""
    try:
        yield
    except TakenOver:
        raise  # the tables are the other server's
    except FedvoxError as error:
        log.error("%s", error)
        journal.tell("stopped", config, error=error.message, remedy=error.remedy, **_how_far(journal))
        draw_curves(journal, config.name)
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        journal.tell("stopped", config, error=what, remedy="See the server's log.", **_how_far(journal))
        raise
    journal.tell("finished", config, **_how_far(journal))
    draw_curves(journal, config.name)


def _how_far(journal: Journal) -> dict[str, Any]:
    last = journal.rounds[-1] if journal.rounds else {"round": 0, "epsilon": 0.0, "worst_clinic": ""}
    return {"rounds_done": last["round"], "epsilon": last["epsilon"], "worst_clinic": last["worst_clinic"]}
