"""A whole federation on one machine: Flower's simulation of an app, and what it would do before it does it.

The app is a folder with a `[tool.flwr.app]` section in its pyproject.toml: ours, or any other. Flower starts Ray, gives
every simulated SuperNode a number, and stops Ray again at the end. Its own `run_simulation` hands no run
configuration to the apps; both are therefore wrapped here.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvox.errors import ConfigError
from fedvox_federation.bundle import ENTRY, SOURCE_ROOTS
from fedvox_federation.config import FederationConfig, from_run_config, split_overrides
from fedvox_federation.quiet import QUIET

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)

Scalar = str | int | float | bool


@dataclass(frozen=True)
class App:
    """A Flower app in a folder.

    Attributes:
        folder: its root.
        server: `module:attribute` of the ServerApp.
        client: likewise of the ClientApp.
        run_config: the app's own, flat.
    """

    folder: Path
    server: str
    client: str
    run_config: Mapping[str, Scalar]

    @property
    def is_ours(self) -> bool:
        """Whether it is a version of this package."""
        return (self.folder / ENTRY).is_file()


def read_app(folder: Path) -> App:
    """The app that a folder's pyproject.toml describes.

    Raises:
        ConfigError: there is none.
    """
    path = folder / "pyproject.toml"
    try:
        section = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        components = section["components"]
        return App(
            folder.resolve(),
            components["serverapp"],
            components["clientapp"],
            _flat(section.get("config", {})),
        )
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", "Name a Flower app's folder with --app.") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} describes no Flower app: {error!r}",
            "It needs [tool.flwr.app.components] with serverapp and clientapp.",
        ) from None


def run_config(app: App, given: Sequence[str]) -> dict[str, Scalar]:
    """The app's run configuration with overrides.

    Args:
        app: see `read_app`.
        given: `key=value` pairs, several to a text as `flwr run` takes them. What the app does not declare is handed to
            its `set`, if it has one: all fields of a federation can be given so.

    Raises:
        ConfigError: not a pair, or a key that the app does not have.
    """
    found = dict(app.run_config)
    more: list[str] = []
    for pair in (pair for text in given for pair in split_overrides(text)):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"run configuration: {pair!r} is no key=value", "For example --run-config rounds=5."
            )
        if key in found:
            found[key] = _scalar(value)
        elif "set" in found:
            more.append(pair)
        else:
            raise ConfigError(
                f"run configuration: the app has no {key!r}", f"It has {', '.join(found) or 'none'}."
            )
    if more:
        found["set"] = shlex.join([*split_overrides(str(found["set"])), *more])
    return found


def run(
    app: App,
    configuration: Mapping[str, Scalar],
    supernodes: int,
    backend: Mapping[str, Any],
    *,
    verbose: bool,
) -> None:
    """Run an app to its end.

    Args:
        app: see `read_app`.
        configuration: see `run_config`.
        supernodes: how many to simulate.
        backend: Flower's backend configuration: `client_resources` and `init_args`.
        verbose: Flower's own log, too.

    Raises:
        Exception: whatever the ServerApp raises.
    """
    prepare(app)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it talks while it is imported
    from flwr.simulation import run_simulation

    _set_up_logs(verbose=verbose)  # Flower sets its own level while it is imported
    server, client = _apps(app, dict(configuration))
    run_simulation(server, client, supernodes, backend_config=_complete(backend), verbose_logging=verbose)


def _set_up_logs(*, verbose: bool) -> None:
    """Flower has a handler of its own; our tables must not be wrapped."""
    flower, ours = logging.getLogger("flwr"), logging.getLogger("fedvox_federation")
    flower.setLevel(logging.DEBUG if verbose else logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers = [handler]
    flower.propagate = ours.propagate = False


def prepare(app: App) -> None:
    """Variables and paths, for this process and for the actors that Ray starts from it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    roots = [str(app.folder / root) for root in SOURCE_ROOTS] if app.is_ours else []
    paths = [str(app.folder), *roots]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *(path for path in known if path not in paths)])


def elsewhere(app: App) -> bool:
    """Whether the app is another version of this package than the one that runs: its own code must run instead."""
    here = Path(__file__).resolve()
    return app.is_ours and not here.is_relative_to(app.folder)


def _apps(app: App, configuration: dict[str, Scalar]) -> tuple[Any, Any]:
    from flwr.app import Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    def told(context: Context) -> Context:
        """A context of its own: Flower refuses one whose run configuration changed."""
        return Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config=dict(configuration),
        )

    class Server(ServerApp):
        """The app's, with its run configuration."""

        def __call__(self, grid: Grid, context: Context) -> None:
            _load(app.server)(grid=grid, context=told(context))

    class Client(ClientApp):
        """The app's, with its run configuration; Ray's actors load it by name, each for itself."""

        def __call__(self, message: Message, context: Context) -> Message:
            reply: Message = _load(app.client)(message, told(context))
            return reply

    return Server(), Client()


def _load(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _complete(backend: Mapping[str, Any]) -> dict[str, Any]:
    # A Ray of its own, unless RAY_ADDRESS or the caller names one: Ray would join whatever cluster it finds here.
    own = {} if os.environ.get("RAY_ADDRESS") else {"address": "local"}
    start = {"include_dashboard": False, **own, **backend.get("init_args", {})}
    # Flower puts a dead actor back into its pool, where it fails every clinic that it is given. Flower hands these
    # options on to Ray, which starts another in its place.
    clinics = {"max_restarts": -1, **backend.get("client_resources", {})}
    return {**backend, "init_args": start, "client_resources": clinics}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


@dataclass(frozen=True)
class PlannedClinic:
    """What one hospital of a simulation would do.

    Attributes:
        name: of the hospital.
        profile: of its standing.
        tier: of its standing.
        patients: that are trained on.
        held_out: that are judged.
        sample_rate: of the patients.
        noise_multiplier: None where it takes no part.
        epsilon: after all rounds; None likewise.
        verdict: in words.
    """

    name: str
    profile: str
    tier: int
    patients: int
    held_out: int
    sample_rate: float
    noise_multiplier: float | None
    epsilon: float | None
    verdict: str


@dataclass(frozen=True)
class PlannedFederation:
    """What a simulation would do.

    Attributes:
        config: of the federation.
        model: name of the backbone.
        parameters: of the network.
        shared: parameters that travel.
        clinics: one entry a SuperNode.
    """

    config: FederationConfig
    model: str
    parameters: int
    shared: int
    clinics: tuple[PlannedClinic, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": "fedvox.federation-plan/1",
            "config": self.config.model_dump(mode="json"),
            "model": self.model,
            "parameters": self.parameters,
            "shared_parameters": self.shared,
            "bytes_per_update": 4 * self.shared,
            "clinics": [asdict(clinic) for clinic in self.clinics],
        }


def plan(config: FederationConfig) -> PlannedFederation:
    """Look at store and weights, train nothing.

    Raises:
        FedvoxError: what the run would raise at its start.
    """
    from fedvox.data.store import BrickStore
    from fedvox.training.config import expand
    from fedvox_federation.client.model import build
    from fedvox_federation.client.sites import hospitals
    from fedvox_federation.client.tasks import check_store
    from fedvox_federation.server.strategies import aggregator_of

    needed = aggregator_of(config).least_updates
    if needed > config.clinics.partition.hospitals:
        raise ConfigError(
            f"strategy.name {config.strategy.name} with these options needs {needed} updates a round, and there are "
            f"{config.clinics.partition.hospitals} hospitals",
            "Lower num_malicious_nodes, or simulate more hospitals.",
        )
    built = build(config)
    store = BrickStore.open(expand(config.clinics.store))
    check_store(store, built)
    return PlannedFederation(
        config=config,
        model=built.name,
        parameters=sum(p.numel() for p in built.network.parameters()),
        shared=sum(value.size for value in built.federated.arrays().values()),
        clinics=tuple(_planned(config, store, one) for one in hospitals(config.clinics, store)),
    )


def _planned(config: FederationConfig, store: Any, hospital: Any) -> PlannedClinic:
    from fedvox_federation.client.clinic import plan_noise
    from fedvox_federation.client.sites import hospital_cohort
    from fedvox_federation.privacy.noise_policy import Excluded

    cohort = hospital_cohort(config.clinics, store, hospital)
    found = plan_noise(config, len(cohort.training), hospital.standing, simulation=True)
    noise = found.noise
    return PlannedClinic(
        name=hospital.name,
        profile=hospital.profile,
        tier=hospital.standing.tier,
        patients=len(cohort.training),
        held_out=len(cohort.held_out),
        sample_rate=found.sample_rate,
        noise_multiplier=None if isinstance(noise, Excluded) else noise.noise_multiplier,
        epsilon=None if isinstance(noise, Excluded) else noise.epsilon,
        verdict=f"takes no part: {noise.reason}" if isinstance(noise, Excluded) else noise.verdict,
    )


def check(config: FederationConfig, supernodes: int) -> None:
    """Refuse what could never begin.

    Raises:
        ConfigError: fewer SuperNodes than a round needs, or than there are hospitals.
    """
    if supernodes < config.server.min_clinics:
        raise ConfigError(
            f"a round needs {config.server.min_clinics} clinics (server.min_clinics), and {supernodes} SuperNodes are "
            "simulated: the run would wait for ever",
            "Raise --num-supernodes, or lower server.min_clinics.",
        )
    if supernodes != config.clinics.partition.hospitals:
        raise ConfigError(
            f"{supernodes} SuperNodes for {config.clinics.partition.hospitals} hospitals "
            "(clinics.partition.hospitals)",
            "Give one of the two, or both alike.",
        )


def federation_config(app: App, configuration: Mapping[str, Scalar]) -> FederationConfig:
    """What our app will read from its run configuration."""
    return from_run_config(configuration, app.folder)
