"""Released forecasting models: `model.safetensors` beside `model.json`, which says all that is needed to use them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fedvox import storage
from fedvox.config import validate
from fedvox.errors import CheckpointError
from fedvox.forecasting.config import FlowSection, NetworkSection, SolverSection
from fedvox.forecasting.convlstm import ConvLSTM
from fedvox.forecasting.trust import Trust
from fedvox.forecasting.velocity import VelocityNetwork
from fedvox.storage import Location
from fedvox.training.release_files import fill, released_folder, write_description, write_weights

SCHEMA = "fedvox.forecast/1"
Network = VelocityNetwork | ConvLSTM


@dataclass(frozen=True)
class ForecastInfo:
    """What `model.json` of a forecasting model holds.

    Attributes:
        flow: sections of the training's configuration, as plain data.
        network: see there.
        solver: see there.
        channels: C of the images.
        unit: of times.
        horizon: the latest time that training has seen.
        size: (D, H, W) of the volumes in training.
        intensities: where training had the 0.5th and 99.5th percentile of a context; patients' scans are mapped there.
        trust: in predicted changes, fitted on held-out patients; None trusts them in full.
        provenance: run, step, error, versions, hash of the weights.
    """

    flow: dict[str, Any]
    network: dict[str, Any]
    solver: dict[str, Any]
    channels: int
    unit: str
    horizon: float
    size: tuple[int, int, int]
    intensities: tuple[float, float] = (0.0, 1.0)
    trust: Trust | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def build_network(flow: FlowSection, network: NetworkSection, channels: int) -> Network:
    """A freshly initialised network for a method."""
    kind = ConvLSTM if flow.method == "convlstm" else VelocityNetwork
    return kind(flow, network, channels)


def write_release(network: nn.Module, info: ForecastInfo, folder: Location) -> None:
    """Writes the weights, then the description, whose presence means that all is whole."""
    provenance = write_weights(network, info.provenance, folder)
    write_description(SCHEMA, replace(info, provenance=provenance), folder)


def load_release(uri: str) -> tuple[Network, ForecastInfo]:
    """Builds the released network with its weights, in evaluation mode on the CPU.

    Args:
        uri: a run directory or its `final` folder.

    Raises:
        CheckpointError: there is no such release, or its weights are damaged or do not fit.
    """
    folder = released_folder(uri)
    info = _read(folder)
    network_section = info.network | {"init_from": None}
    network = build_network(
        validate(FlowSection, info.flow, source=folder.uri),
        validate(NetworkSection, network_section, source=folder.uri),
        info.channels,
    )
    fill(network, info.provenance, folder)
    return network, info


def solver_of(info: ForecastInfo) -> SolverSection:
    """The solver that a release names."""
    return validate(SolverSection, info.solver, source="model.json")


def flow_of(info: ForecastInfo) -> FlowSection:
    """The flow that a release was trained with."""
    return validate(FlowSection, info.flow, source="model.json")


def _read(folder: Location) -> ForecastInfo:
    location = folder.child("model.json")
    if not storage.exists(location):
        raise CheckpointError(
            f"{folder.uri} holds no released forecasting model (model.json is missing)",
            "Name a run of `fedvox forecast --config`, or its `final` folder.",
        )
    try:
        value = dict(json.loads(storage.read_bytes(location)))
        if value.pop("schema") != SCHEMA:
            raise CheckpointError(
                f"{location.uri} is no forecasting model ({SCHEMA})",
                "Name a run of `fedvox forecast --config`, or its `final` folder.",
            )
        depth, height, width = value.pop("size")
        low, high = value.pop("intensities", (0.0, 1.0))
        trust = value.pop("trust", None)
        return ForecastInfo(
            **value, size=(depth, height, width), intensities=(float(low), float(high)),
            trust=None if trust is None else Trust(**trust),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{location.uri} is not readable: {error!r}", "Train the model again."
        ) from error
