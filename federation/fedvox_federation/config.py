"""What a federation is told: one file for the server, the clinics, and a simulation of both.

    rounds: 5
    pretrained: $FEDVOX_HOME/runs/demo
    training: {scope: norm+head, steps: 20}
    privacy: {epsilon: 8.0, delta: 1e-3, expected_batch: 2, policy: {name: tiers}}
    strategy: {name: fedavg, weighting: inverse-noise}
    clinics: {store: $FEDVOX_HOME/stores/mni152-sites, partition: {kind: acquisition, hospitals: 3}}

Flower hands its apps a flat run configuration: `config` names such a file inside the app bundle, and `set` holds
overrides (`rounds=3 privacy.epsilon=4`). What concerns one clinic alone, above all its budget and where its
patients are, is not here but in a file of the clinic's own (`ClinicConfig`), which no server can change.

This module imports neither torch nor Flower.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from fedvox.config import Config, load_config
from fedvox.data.augment_config import AugmentConfig
from fedvox.errors import ConfigError
from fedvox.training.config import Size3, expand

Name = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Section(Config):
    """Any of the configurations here: infinity is no budget, no step and no deadline."""

    model_config = ConfigDict(allow_inf_nan=False)


class SegmentationSection(Section):
    """Voxel-wise segmentation on the patients of a brick store."""

    kind: Literal["segmentation"] = "segmentation"
    structures: tuple[str, ...] | None = None
    """Names of the output channels, background first, equal at all clinics; None takes those of the weights."""
    channels: int | None = Field(None, ge=1)
    """Image channels, equal at all clinics; None takes those of the weights."""
    patch_size: Size3 | None = None
    """(D, H, W); None takes that of the weights."""
    patches_per_patient: int = Field(2, ge=1)
    """Drawn anew whenever a patient takes part; their mean loss is one gradient, hence one unit of privacy."""
    foreground_fraction: float = Field(1 / 3, ge=0, le=1)
    """Share of the patches that are centred on an annotated structure."""
    augment: AugmentConfig = AugmentConfig(enabled=False)
    """MixUp and its like do not exist here; everything in it looks at one patch alone."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Of the windows with which whole volumes are judged."""


class TrainingSection(Section):
    """What a clinic does with a round."""

    scope: Literal["full", "decoder", "norm+head", "lora"] = "norm+head"
    lora_rank: int = Field(4, ge=1)
    local_norms: bool = False
    """Scales and shifts of normalisations are trained, but stay in the clinic (FedBN)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    """SGD only."""
    weight_decay: float = Field(0.0, ge=0)
    steps: int = Field(20, ge=1)
    """Optimiser steps of a round, those of nobody included."""
    mode: Literal["loop", "hooks"] = "loop"
    patches_at_once: int = Field(1, ge=1)
    """Physical batch."""
    evaluate: Literal["every-round", "never"] = "every-round"
    """Dice of the clinic's held-out patients before and after each round."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


class PolicySection(Section):
    """A noise policy by name; see `fedvox_federation.privacy.noise_policy`."""

    name: str = "tiers"
    options: dict[str, Any] = Field(default_factory=dict)


class PrivacySection(Section):
    """What is promised to every patient, and how."""

    epsilon: float = Field(8.0, gt=0)
    """ε after all rounds."""
    delta: float = Field(1e-3, gt=0, lt=1)
    clipping_norm: float = Field(1.0, gt=0)
    """Largest L2 norm of one patient's gradient."""
    expected_batch: float = Field(2.0, gt=0)
    """Patients that take part in a step on average; divided by a clinic's number of patients it is its sample rate."""
    largest_sample_rate: float = Field(0.5, gt=0, le=1)
    """Clinics so small that their rate would be larger take part with this one."""
    policy: PolicySection = PolicySection()
    admit_unattested: bool = False
    """Let clinics without a valid attestation take part, as score 0."""


class StrategySection(Section):
    """How updates become the next model; the names are Flower's, and `scaffold` beside them."""

    name: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedmedian", "fedtrimmedavg",
                  "krum", "multikrum", "bulyan", "scaffold"] = "fedavg"  # fmt: skip
    options: dict[str, float | int] = Field(default_factory=dict)
    """The strategy's own arguments, such as `{eta: 0.1}`; of fedprox, `{proximal_mu: 0.1}`."""
    weighting: Literal["equal", "size", "score", "inverse-noise"] = "size"
    secure_aggregation: bool = False
    """Refused: see the federation's guide."""

    @model_validator(mode="after")
    def _no_secure_aggregation(self) -> Self:
        if self.secure_aggregation:
            raise ValueError(
                "SecAgg+ needs Flower's legacy workflow, which the present message API does not run; without it, "
                "rely on TLS, SuperNode authentication and the noise in every update"
            )
        return self


class StudyTrustSection(Section):
    """Whose attestations the server believes. Without it every clinic counts as unattested."""

    trust_store: str
    root_key: str
    """Public key that must have signed the trust store."""
    profiles: tuple[str, ...] = ()
    """Question catalogues that the study accepts; empty for all of this version."""


class ServerSection(Section):
    """When a round counts, and what an update may be."""

    trust: StudyTrustSection | None = None
    validation_store: str | None = None
    """Brick store of public or consented cases on which the new model is judged after each round."""
    min_clinics: int = Field(2, ge=1)
    """Updates that a round needs, counted after refusals, failures and the deadline."""
    connect_timeout_s: float = Field(120.0, gt=0)
    """How long to wait for enough SuperNodes before saying that there are none."""
    deadline_s: float = Field(3600.0, gt=0)
    """Of a round; who comes later is left out of it."""
    on_too_few: Literal["stop", "skip", "wait"] = "stop"
    """A round with fewer updates ends the run (it can be resumed), leaves the model as it is, or asks those that
    are missing again, every `ask_again_s`, for at most `give_up_s`."""
    ask_again_s: float = Field(60.0, gt=0)
    give_up_s: float = Field(24 * 3600.0, gt=0)
    largest_update_norm: float | None = Field(None, gt=0)
    """L2; longer updates are cut to it. None cuts nothing."""
    norm_over_median: float | None = Field(10.0, gt=1)
    """An update so many times as long as the median of its round is bad. None asks only what training can reach."""
    on_bad_update: Literal["drop", "stop"] = "drop"
    """NaN, infinite or wrongly shaped updates: leave the clinic out of the round, or end the run."""


class PartitionSection(Section):
    """How a simulation deals patients to hospitals; see `fedvox_federation.hospitals`."""

    kind: Literal["iid", "sizes", "labels", "acquisition"] = "iid"
    hospitals: int = Field(3, ge=1)
    seed: int = Field(0, ge=0)
    alpha: float = Field(0.5, gt=0)
    group_by: Literal["volume", "dominant"] = "volume"
    least_patients: int = Field(1, ge=1)


class ProfileSection(Section):
    """A simulated hospital's standing, in place of an attestation."""

    name: str = "well-equipped"
    score: float = Field(1.0, ge=0, le=1)
    tier: int = Field(4, ge=0, le=4)
    eligible: bool = True
    attested: bool = True


class ClinicsSection(Section):
    """The hospitals of a simulation. Under SuperNodes every clinic has a `ClinicConfig` of its own instead."""

    store: str = "$FEDVOX_HOME/stores/mni152-sites"
    partition: PartitionSection = PartitionSection()
    patient_pattern: str | None = None
    """Regular expression whose first group is the patient in a case's id; None takes every case for a patient."""
    held_out_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of each hospital's patients that is judged and never trained on."""
    profiles: tuple[ProfileSection, ...] = Field((ProfileSection(),), min_length=1)
    """Dealt to the hospitals in turn."""
    folder: str = "$FEDVOX_HOME/federation"
    """Local folder; `NAME/clinics/HOSPITAL` below it is what a real clinic has on its own disk."""


class FederationConfig(Section):
    """One federated run."""

    name: str = Field("federation", pattern=Name)
    """Names the run's folder and its entries in the clinics' ledgers."""
    study: str = "fedvox"
    """For which the clinics' attestations must be."""
    rounds: int = Field(3, ge=1)
    seed: int = Field(0, ge=0)
    """Of new heads and of patches. It never reaches the noise, nor who takes part in a step."""
    output: str = "$FEDVOX_HOME/federation"
    """Folder or `s3://` address of the server's runs."""
    pretrained: str = "$FEDVOX_HOME/runs/demo"
    """A run, a release, a checkpoint or an upstream file, as for `fedvox finetune`. Must be public, or never
    trained on the clinics' patients."""
    task: SegmentationSection = SegmentationSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    strategy: StrategySection = StrategySection()
    server: ServerSection = ServerSection()
    clinics: ClinicsSection = ClinicsSection()

    @model_validator(mode="after")
    def _scaffold_needs_plain_sgd(self) -> Self:
        training = self.training
        plain = training.optimizer == "sgd" and training.momentum == 0 and training.weight_decay == 0
        if self.strategy.name == "scaffold" and not plain:
            raise ValueError(
                "strategy.name scaffold reads a clinic's mean gradient from how far it moved, which only plain SGD "
                "tells: set training.optimizer=sgd, training.momentum=0 and training.weight_decay=0"
            )
        return self

    @property
    def sha256(self) -> str:
        """Of everything that server and clinics must agree on. Places of files may differ."""
        shared = self.model_dump(mode="json", exclude={"output", "pretrained", "clinics", "server"})
        shared["training"].pop("device")
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    @property
    def proximal_mu(self) -> float:
        """Of FedProx, 0 with other strategies."""
        mu = self.strategy.options.get("proximal_mu", 0.0)
        return float(mu) if self.strategy.name == "fedprox" else 0.0


class TrustSection(Section):
    """How a clinic convinces itself of its own attestation, before the server does."""

    attestation: str
    """File with the signed envelope."""
    trust_store: str
    root_key: str
    """Public key that must have signed the trust store."""
    node_key: str
    """This SuperNode's public key, for which the attestation is."""
    profiles: tuple[str, ...] | None = None
    """Accepted profiles of the question catalogue; None takes all of this version."""


class ClinicConfig(Section):
    """What a clinic says about itself, in a file on its own disk.

    A SuperNode is told of it by `--node-config 'clinic="/etc/fedvox/clinic.yaml"'`.
    """

    name: str = Field(min_length=1, max_length=200)
    """As in its attestation."""
    store: str
    """Brick store of the clinic's patients."""
    folder: str
    """For the ledger, local norms and the last replies. Losing it loses the account of what was spent."""
    budget_epsilon: float = Field(gt=0)
    """The clinic's own, over all studies on these patients."""
    budget_delta: float = Field(gt=0, lt=1)
    accountant: Literal["prv", "rdp"] = "prv"
    """See `fedvox_federation.privacy.ledger.Terms`."""
    pretrained: str | None = None
    """The clinic's own copy of the weights; None takes the file that the study names, if it is one."""
    patient_pattern: str | None = None
    """See `ClinicsSection`."""
    held_out_fraction: float = Field(0.2, ge=0, lt=1)
    share_scores: bool = False
    """Send losses and Dice with the updates. They are computed from patients and carry no noise."""
    approved_bundles: str | None = None
    """File of the code that may run here, written by `fedvox-federation bundle approve`; None for
    `approved-bundles.json` in `folder`."""
    trust: TrustSection | None = None


def approvals_file(own: ClinicConfig) -> Path:
    """Where a clinic's list of approved bundles is."""
    named = own.approved_bundles
    return Path(expand(named)) if named is not None else Path(expand(own.folder)) / "approved-bundles.json"


def from_run_config(run_config: Mapping[str, Any], app_folder: Path) -> FederationConfig:
    """The configuration that Flower's flat run configuration names.

    Args:
        run_config: `config`, a path relative to the app, and `set`, overrides separated by blanks.
        app_folder: root of the app bundle.

    Raises:
        ConfigError: another key, or what `fedvox.config.load_config` raises.
    """
    if unknown := sorted(set(run_config) - {"config", "set"}):
        raise ConfigError(
            f"run configuration: unknown key {unknown[0]!r}",
            "Known are `config` and `set`, as in --run-config 'set=\"rounds=3 privacy.epsilon=4\"'.",
        )
    named = str(run_config.get("config", ""))
    overrides = split_overrides(str(run_config.get("set", "")))
    return load_config(FederationConfig, app_folder / named if named else None, overrides)


def split_overrides(text: str) -> list[str]:
    """`a=1 'b={c: 2}'` as a shell would split it.

    Raises:
        ConfigError: a quotation mark is left open.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"run configuration: {text!r}: {error}", "Quote values with blanks: 'a={b: 1}'."
        ) from error


def to_run_config(config: str, overrides: Iterable[str]) -> dict[str, str]:
    """The inverse of `from_run_config`, for what starts Flower."""
    return {"config": config, "set": shlex.join(overrides)}
