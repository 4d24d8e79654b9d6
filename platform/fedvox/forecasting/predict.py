"""One patient's forecast, in tiles, so that memory is bounded whatever the volume.

A tile is forecast from the same tile of every context scan; tiles overlap and are blended as in the sliding window of
segmentation. What is held is the context, the result, and one tile's flow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.errors import ConfigError, DataError
from fedvox.forecasting.baselines import BASELINES, Baseline
from fedvox.forecasting.config import SolverSection
from fedvox.forecasting.flow import Forecaster
from fedvox.forecasting.normalization import Normalization
from fedvox.forecasting.release import ForecastInfo, Network, flow_of
from fedvox.forecasting.sequence import Sequence4D
from fedvox.forecasting.times import converted
from fedvox.forecasting.trust import Evidence, Trust
from fedvox.inference.windows import Size3, WindowGrid

LITTLE_TRUST = 0.5
"""Below this the notes of a forecast say so."""


@dataclass(frozen=True)
class Tiling:
    """How a volume is covered.

    Attributes:
        patch_size: (D, H, W); None takes the size of training.
        overlap: share that neighbours have in common.
    """

    patch_size: Size3 | None = None
    overlap: float = 0.5


@dataclass(frozen=True)
class Model:
    """A trained model, ready to forecast.

    Attributes:
        network: with its weights, on its device.
        info: its description.
        solver: how the flow is integrated.
    """

    network: Network
    info: ForecastInfo
    solver: SolverSection


@dataclass(frozen=True)
class Forecast:
    """A patient's forecast.

    Attributes:
        volume: `(C, D, H, W)` float32, in the units of the scans.
        spread: of the same shape, standard deviation over stochastic draws; None without draws.
        time: that was asked for, in the sequence's unit.
        method: what made it; "lci" where there was nothing else to do.
        context: the scans that were used.
        notes: what a reader should know: fallbacks, extrapolation, little trust.
        trust: share of the predicted change that was believed, from 0 to 1; None without a prior of trust.
    """

    volume: np.ndarray
    spread: np.ndarray | None
    time: float
    method: str
    context: Sequence4D
    notes: tuple[str, ...]
    trust: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The side-car: everything but the voxels."""
        return {
            "schema": "fedvox.forecast.result/1",
            "patient": self.context.patient,
            "time": self.time,
            "unit": self.context.unit,
            "method": self.method,
            "trust": self.trust,
            "context": [
                {"file": self.context.file_of(i), "time": float(t)} for i, t in enumerate(self.context.times)
            ],
            "notes": list(self.notes),
        }


def forecast(
    sequence: Sequence4D, time: float, model: Model | str, *, tiling: Tiling | None = None, draws: int = 0,
    seed: int = 0, on_tile: Callable[[int, int], None] | None = None,
) -> Forecast:  # fmt: skip
    """Forecasts a patient at a time from the scans before it.

    Args:
        sequence: the patient, in the units of the scans.
        time: in the sequence's unit.
        model: a trained one, or the name of a baseline.
        tiling: of the volume, for a trained model.
        draws: of the stochastic flow, for an uncertainty map; 0 makes none.
        seed: of the draws.
        on_tile: told how many tiles are done, and how many there are.

    Raises:
        DataError: every scan is from after that time, or model and patient differ in channels or kind of time.
        ConfigError: draws of what has one answer only, or a single draw.
    """
    _check_draws(model, draws)
    history = sequence.before(time)
    context = history.take(np.flatnonzero(history.valid))
    notes = list(_notes(sequence, context, time, model))
    if len(context) == 1 or isinstance(model, str):
        method = "lci" if len(context) == 1 else str(model)
        return Forecast(
            _baseline(context, time, BASELINES[method]), None, time, method, context, tuple(notes)
        )
    _check_channels(context, model.info)
    normalization = Normalization.of(context.volumes).onto(model.info.intensities)
    volume, spread, trust = _tiled(
        history, time, model, normalization, tiling or Tiling(), draws, seed, on_tile
    )
    if trust is not None and trust < LITTLE_TRUST:
        notes.append(
            f"only {trust:.0%} of the predicted change was applied: the model predicts this patient's own scans badly "
            "from each other"
        )
    return Forecast(
        normalization.undo(volume.numpy()),
        None if spread is None else normalization.undo_spread(spread.numpy()),
        time, str(model.info.flow["method"]), context, tuple(notes), trust,
    )  # fmt: skip


def _check_draws(model: Model | str, draws: int) -> None:
    if not draws:
        return
    if draws == 1:
        raise ConfigError(
            "--uncertainty 1: one draw has no spread", "Draw at least two, better eight or more."
        )
    if isinstance(model, str) or model.info.flow["objective"] == "regression":
        what = f"the baseline {model}" if isinstance(model, str) else "this model, a regression,"
        raise ConfigError(
            f"--uncertainty needs a flow, and {what} has one answer only",
            "Leave --uncertainty out, or use a model that was trained with flow.objective flow.",
        )
    if not model.info.flow["sigma"]:
        raise ConfigError(
            "--uncertainty: the model was trained without noise (flow.sigma 0), so that all draws are the same",
            "Leave --uncertainty out, or train with flow.sigma above 0.",
        )


def _notes(sequence: Sequence4D, context: Sequence4D, time: float, model: Model | str) -> list[str]:
    notes = []
    if len(context) == 1:
        notes.append(
            "one scan only: the forecast is that scan unchanged (last context image), for lack of anything to "
            "tell change from"
        )
    later = int(sequence.valid.sum()) - len(context)
    if later:
        notes.append(
            f"{later} scan(s) from {time:g} {sequence.unit} on were not used: a forecast sees the past only"
        )
    if isinstance(model, Model):
        horizon = converted(model.info.horizon, model.info.unit, sequence.unit)
        if time > horizon:
            notes.append(
                f"{time:g} {sequence.unit} lies beyond {horizon:g}, the latest time in training: extrapolation"
            )
    return notes


def _baseline(context: Sequence4D, time: float, baseline: Baseline) -> np.ndarray:
    if baseline is BASELINES["lci"]:
        return np.asarray(context.volumes[-1], np.float32)  # to the last bit, not by way of the normalisation
    # Baselines keep within 0 and 1: here that is all that was seen, lest the brightest voxels be cut off.
    normalization = Normalization.of(context.volumes, ends=(0, 100))
    scans = torch.from_numpy(normalization.apply(context.volumes))[None]
    times = torch.tensor(context.times[None], dtype=torch.float32)
    found = baseline(scans, times, torch.ones(1, len(context), dtype=torch.bool), torch.tensor([time]))
    return normalization.undo(found[0].numpy())


def _check_channels(context: Sequence4D, info: ForecastInfo) -> None:
    channels = context.volumes.shape[1]
    if channels != info.channels:
        raise DataError(
            f"{context.patient} has scans of {channels} channels, the model takes {info.channels}",
            "Use a model that was trained on such scans.",
            code="channels_differ",
        )


def _tiled(
    history: Sequence4D, time: float, model: Model, normalization: Normalization, tiling: Tiling, draws: int,
    seed: int, on_tile: Callable[[int, int], None] | None,
) -> tuple[Tensor, Tensor | None, float | None]:  # fmt: skip
    """Forecast and spread `(C, D, H, W)` in normalised units, and the trust, which is one for all tiles."""
    scans = torch.from_numpy(normalization.apply(history.volumes))
    grid = WindowGrid.of(scans.shape[2:], patch_of(scans.shape[2:], model, tiling), tiling.overlap)
    padded = _padded(scans, grid)
    step = _TileForecast(model, history, time, draws, seed)
    passes = 1 if model.info.trust is None else 2
    done = itertools.count(1)

    def tell() -> None:
        if on_tile is not None:
            on_tile(next(done), passes * grid.num_windows)

    trust = None if model.info.trust is None else _weight(step, padded, grid, model.info.trust, tell)
    result = torch.zeros(scans.shape[1], *grid.padded_size)
    spread = torch.zeros_like(result) if draws else None
    for box, weight in _boxes(grid):
        mean, deviation = step(padded[(..., *box)], trust)
        result[(slice(None), *box)] += weight * mean
        if spread is not None and deviation is not None:
            spread[(slice(None), *box)] += weight * deviation
        tell()
    inner = tuple(slice(b, b + n) for b, n in zip(grid.pad_before, grid.size, strict=True))
    found = result[(slice(None), *inner)]
    return found, None if spread is None else spread[(slice(None), *inner)], trust


def _boxes(grid: WindowGrid) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
    for layer in range(len(grid.starts[0])):
        yield from grid.boxes(layer)


def _weight(
    step: _TileForecast, padded: Tensor, grid: WindowGrid, trust: Trust, tell: Callable[[], None]
) -> float:
    """Of the predicted changes, one for the whole volume: by the mean of what the tiles say."""
    total = Evidence(torch.zeros(1), torch.zeros(1))
    for box, _ in _boxes(grid):
        total += step.evidence(padded[(..., *box)], past_only=trust.past_only)
        tell()
    return float(total.over(grid.num_windows).weight(trust.prior))


class _TileForecast:
    """Forecasts a tile `(T, C, d, h, w)`: mean and, with draws, spread. Missing scans are visits too, to TFM."""

    def __init__(self, model: Model, history: Sequence4D, time: float, draws: int, seed: int) -> None:
        self.device = next(model.network.parameters()).device
        self.forecaster = Forecaster(model.network, flow_of(model.info), model.solver)
        unit = model.info.unit
        times = [converted(float(t), history.unit, unit) for t in history.times]
        self.times = torch.tensor([times], device=self.device, dtype=torch.float32)
        self.valid = torch.tensor(history.valid[None], device=self.device)
        self.target = torch.tensor([converted(time, history.unit, unit)], device=self.device)
        self.draws, self.seed = draws, seed

    def evidence(self, tile: Tensor, *, past_only: bool) -> Evidence:
        """What the tile says about predicted changes."""
        scans = tile[None].to(self.device)
        return self.forecaster.evidence(scans, self.times, self.valid, past_only=past_only).cpu()

    def __call__(self, tile: Tensor, trust: float | None) -> tuple[Tensor, Tensor | None]:
        scans = tile[None].to(self.device)
        given = scans, self.times, self.valid, self.target
        weight = None if trust is None else torch.full((1,), trust, device=self.device)
        mean = self.forecaster(*given, weight=weight)[0].cpu()
        if not self.draws:
            return mean, None
        drawn = self.forecaster.draws(*given, count=self.draws, seed=self.seed)
        return mean, drawn[:, 0].std(dim=0).cpu()


def patch_of(size: Sequence[int], model: Model, tiling: Tiling) -> Size3:
    """The tile's size: as asked for or as in training, no larger than the volume needs, and one the network takes.

    Raises:
        ConfigError: an edge is 0.
    """
    wanted = tiling.patch_size or model.info.size
    if min(wanted) < 1:
        raise ConfigError(
            f"--patch-size {','.join(map(str, wanted))} has an empty edge",
            "Give D,H,W in voxels, such as 32,32,32.",
        )
    edges = []
    for have, want, divisor in zip(size, wanted, model.network.divisor, strict=True):
        edges.append(-(-min(have, want) // divisor) * divisor)
    depth, height, width = edges
    return depth, height, width


def _padded(scans: Tensor, grid: WindowGrid) -> Tensor:
    """`(T, C, D, H, W)` with the edge voxels repeated where an axis lacks to a tile."""
    pads: list[int] = []
    for have, want, before in reversed(list(zip(grid.size, grid.padded_size, grid.pad_before, strict=True))):
        pads += [before, want - have - before]
    return torch.nn.functional.pad(scans, pads, mode="replicate") if any(pads) else scans
