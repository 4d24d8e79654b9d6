"""One clinic's part of one round, as a plain function: no Flower, no network.

    reply = take_part(arrays, order, clinic)

In this order, and each step before anything that it protects: is the order one that this clinic agreed to; was it
answered before; may the clinic take part, and with how much noise; is the model safe to train privately; are the steps
booked; train; is the update on disk; is the booking settled. Whatever goes wrong, what leaves is a code.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedvox_federation.client.corrections import add_correction, add_proximal_term, check_correction
from fedvox_federation.client.refusals import Refused, refusal_of
from fedvox_federation.client.replies import ReplyCache, order_sha256, read_arrays, write_arrays
from fedvox_federation.client.tasks import Task
from fedvox_federation.config import FederationConfig, TrainingSection
from fedvox_federation.dp_sgd.local_round import LocalUpdate, train_round
from fedvox_federation.dp_sgd.preflight import preflight
from fedvox_federation.dp_sgd.training import Patient, PrivacySettings, PrivateTrainer, Tensors
from fedvox_federation.privacy.accountant import Accountant, epsilon
from fedvox_federation.privacy.ledger import PrivacyLedger, Terms
from fedvox_federation.privacy.noise_policy import (
    Excluded,
    Promise,
    SiteNoise,
    Standing,
    Workload,
    build_policy,
    site_noise,
)
from fedvox_federation.privacy.units import check_delta, sample_rate
from fedvox_federation.protocol import (
    Array,
    Arrays,
    BadMessage,
    ClinicReply,
    Refusal,
    RoundOrder,
    arrays_sha256,
    split_correction,
)

log = logging.getLogger(__name__)

_UNCLIPPED = 1e30  # where there is no noise, there is nothing that clipping would be for
_passed: set[tuple[str, str, type]] = set()  # (configuration, network, task) found safe by this process


@dataclass(frozen=True)
class Budget:
    """What may be spent on a clinic's patients, over all studies; see `Terms`."""

    epsilon: float
    delta: float
    accountant: Accountant = "prv"


@dataclass(frozen=True)
class Clinic:
    """All that a clinic brings to a round.

    Attributes:
        name: as in its ledger and its attestation.
        config: of the federation, as this clinic was given it.
        task: its model and patients.
        folder: its own, for ledger, local norms and replies.
        budget: what its patients agreed to.
        standing: of its attestation, verified by itself.
        simulation: no patient is behind the data.
        share_scores: losses and Dice may leave.
        attestation: the signed envelope, sent along.
        node_key: public key that it is for.
        bundle_sha256: of the code that runs.
    """

    name: str
    config: FederationConfig
    task: Task
    folder: Path
    budget: Budget
    standing: Standing
    simulation: bool = False
    share_scores: bool = False
    attestation: str = ""
    node_key: str = ""
    bundle_sha256: str = ""

    @property
    def run_folder(self) -> Path:
        """For what belongs to this run alone."""
        return self.folder / "runs" / self.config.name

    def ledger(self) -> PrivacyLedger:
        """The account of these patients, opened with the clinic's budget if there is none.

        Raises:
            ConfigError: it is about other patients, or has another budget.
            LedgerDamaged: a person must look.
        """
        terms = Terms(
            site=self.name,
            dataset=self.task.dataset,
            epsilon=self.budget.epsilon,
            delta=self.budget.delta,
            accountant=self.budget.accountant,
        )
        return PrivacyLedger.open_or_create(self.folder / "ledger", terms)


def take_part(arrays: Mapping[str, Array], order: RoundOrder, clinic: Clinic) -> ClinicReply:
    """Answer an order.

    Args:
        arrays: the shared parameters to start from, and under SCAFFOLD this clinic's correction (`with_correction`).
        order: of the server.
        clinic: whose part it is.

    Returns:
        An update, or why there is none. Nothing is raised but what ends the process.
    """
    started = time.monotonic()
    part = _Part(order, clinic)
    try:
        reply = part.answer(arrays)
    except Exception as error:  # noqa: BLE001 - whatever it is, its text must not leave
        reply = replace(part.reply, refusal=refused(error, order.round_number), arrays={})
    return replace(reply, seconds=time.monotonic() - started)


def refused(error: Exception, round_number: int) -> Refusal:
    """Tell the clinic's own log what went wrong; the code for the server."""
    code = refusal_of(error)
    log.warning("round %d: no update (%s): %s", round_number, code.value, error)
    if code is Refusal.FAILED:
        log.error("round %d", round_number, exc_info=error)
    return code


def plan_noise(config: FederationConfig, patients: int, standing: Standing, *, simulation: bool) -> Plan:
    """A clinic's sample rate and noise, by the study's policy.

    Args:
        config: of the federation.
        patients: that the clinic trains on.
        standing: of its attestation.
        simulation: see `fedvox_federation.privacy.noise_policy.site_noise`.

    Raises:
        PrivacyError: the policy does not keep the promise, or δ promises nothing to so few patients.
    """
    privacy = config.privacy
    if not simulation:
        check_delta(privacy.delta, patients)
    rate = sample_rate(min(privacy.expected_batch, privacy.largest_sample_rate * patients), patients)
    noise = site_noise(
        build_policy(privacy.policy.name, **privacy.policy.options),
        standing,
        Promise(privacy.epsilon, privacy.delta),
        Workload(rate, config.rounds * config.training.steps),
        admit_unattested=privacy.admit_unattested,
        simulation=simulation,
    )
    return Plan(rate, noise)


@dataclass(frozen=True)
class Plan:
    """See `plan_noise`.

    Attributes:
        sample_rate: of the clinic's patients.
        noise: or why the clinic takes no part.
    """

    sample_rate: float
    noise: SiteNoise | Excluded


class _Part:
    """One answer in the making. `reply` holds what is known so far, for a refusal half way."""

    def __init__(self, order: RoundOrder, clinic: Clinic) -> None:
        self.order, self.clinic = order, clinic
        self.reply = ClinicReply(
            clinic=clinic.name,
            run=order.run,
            round_number=order.round_number,
            score=clinic.standing.score,
            tier=clinic.standing.tier,
            attestation=clinic.attestation,
            node_key=clinic.node_key,
            bundle_sha256=clinic.bundle_sha256,
        )

    def answer(self, arrays: Mapping[str, Array]) -> ClinicReply:
        """The update, or any exception."""
        model = self.clinic.task.model
        self._check_order(model.base_sha256)
        asked = order_sha256(self.order, arrays)
        start, correction = split_correction(arrays)
        check_correction(correction, model, self.clinic.config)
        patients = self.clinic.task.patients(self.order.round_number)
        noise = self._admitted(len(patients))
        ledger = self.clinic.ledger() if noise.keeps_promise else None
        if ledger is not None:
            self._note(epsilon_spent=ledger.account().epsilon, delta=self.clinic.budget.delta)
            if (again := self._answered_before(ledger, asked)) is not None:
                return again
        model.load(start)
        self._load_local()
        self._preflight()
        self._note(dice_before=self._dice())
        self._train(patients, noise, ledger, asked, correction)
        if model.local:
            write_arrays(self._local_file, model.local_arrays())
        self._note(dice_after=self._dice())
        if ledger is not None:
            self._cache.save(self.reply, asked)
        return self.reply

    def _note(self, **facts: Any) -> None:
        self.reply = replace(self.reply, **facts)

    def _check_order(self, base_sha256: str) -> None:
        order, config = self.order, self.clinic.config
        if (order.run, order.rounds, order.config_sha256) != (config.name, config.rounds, config.sha256):
            raise Refused(
                Refusal.OTHER_CONFIG,
                f"the order is for run {order.run!r}, configuration {order.config_sha256[:12]}; this clinic has "
                f"{config.name!r}, {config.sha256[:12]}",
                "Start server and clinics with the same configuration.",
            )
        if order.base_sha256 != base_sha256:
            raise Refused(
                Refusal.OTHER_WEIGHTS,
                f"what is not trained has hash {base_sha256[:12]} here, {order.base_sha256[:12]} at the server",
                "Copy the study's pretrained weights again, and use the same version of torch.",
            )
        if order.proximal_mu != config.proximal_mu:
            raise BadMessage(f"proximal_mu is {order.proximal_mu}, agreed on was {config.proximal_mu}")

    def _admitted(self, patients: int) -> SiteNoise:
        clinic = self.clinic
        plan = plan_noise(clinic.config, patients, clinic.standing, simulation=clinic.simulation)
        self._note(patients=patients, sample_rate=plan.sample_rate)
        if isinstance(plan.noise, Excluded):
            raise Refused(Refusal.NOT_ADMITTED, f"this clinic takes no part: {plan.noise.reason}")
        self._require_delta()
        self._note(noise_multiplier=plan.noise.noise_multiplier)
        return plan.noise

    def _require_delta(self) -> None:
        """An ε at a larger δ than the study's would be told to everybody as if it were at the study's."""
        own, studys = self.clinic.budget.delta, self.clinic.config.privacy.delta
        if own > studys:
            raise Refused(
                Refusal.NO_PROMISE,
                f"this clinic accounts at δ {own:g}, and the study promises δ {studys:g}",
                "A clinic's budget_delta must be at most the study's privacy.delta.",
            )

    @property
    def _cache(self) -> ReplyCache:
        return ReplyCache(self.clinic.run_folder)

    def _answered_before(self, ledger: PrivacyLedger, asked: str) -> ClinicReply | None:
        """The same answer again: training once more would spend once more."""
        done = ledger.committed(self.order.run, self.order.round_number)
        if done is None:
            return None
        found = self._cache.find(self.order, asked, done.update_sha256)
        if found is None:
            raise Refused(
                Refusal.ALREADY_ANSWERED,
                f"round {self.order.round_number} of {self.order.run!r} was trained and sent before, from other "
                "parameters or too long ago",
                "Let the server resume its run, or start one under another name.",
            )
        return replace(
            found,
            epsilon_spent=ledger.account().epsilon,
            attestation=self.reply.attestation,  # a renewed one, perhaps
            node_key=self.reply.node_key,
        )

    @property
    def _local_file(self) -> Path:
        return self.clinic.run_folder / "local.npz"

    def _load_local(self) -> None:
        if self.clinic.task.model.local and self._local_file.is_file():
            self.clinic.task.model.load_local(read_arrays(self._local_file))

    def _preflight(self) -> None:
        """Once for each model and configuration in a process: it costs as much as some steps."""
        task, config = self.clinic.task, self.clinic.config
        key = (config.sha256, repr(task.model.network), type(task))
        if key not in _passed:
            report = preflight(task.model.network, task.loss, task.example(), mode=config.training.mode)
            report.require()
            _passed.add(key)

    def _dice(self) -> float:
        if self.clinic.config.training.evaluate == "never":
            return math.nan
        dice = self.clinic.task.evaluate()
        log.info("round %d: Dice of held-out patients %.4f", self.order.round_number, dice)
        return dice if self.clinic.share_scores else math.nan

    def _train(
        self,
        patients: Sequence[Patient],
        noise: SiteNoise,
        ledger: PrivacyLedger | None,
        asked: str,
        correction: Arrays,
    ) -> None:
        clinic, order, steps = self.clinic, self.order, self.clinic.config.training.steps
        losses: list[float] = []
        trainer = _trainer(clinic, len(patients), noise.noise_multiplier, self.reply.sample_rate, losses)
        add_proximal_term(trainer.optimizer, order.proximal_mu)
        add_correction(trainer.optimizer, clinic.task.model.network, correction)

        def keep(update: LocalUpdate) -> None:
            sent = {name: value.numpy() for name, value in update.parameters.items()}
            self._note(arrays=sent, update_sha256=update.sha256, steps=steps)
            self._cache.save(self.reply, asked)

        if ledger is None:  # only in simulations: nothing is promised, so there is nothing to book
            trainer.train(patients, steps)
            arrays = clinic.task.model.arrays()
            self._note(arrays=arrays, update_sha256=arrays_sha256(arrays), steps=steps)
            spent = epsilon(
                noise.noise_multiplier,
                self.reply.sample_rate,
                steps * order.round_number,
                noise.promise.delta,
            )
            self._note(epsilon_spent=spent, delta=noise.promise.delta)
        else:
            train_round(
                trainer, patients, ledger, run=order.run, round_number=order.round_number, steps=steps,
                keep=clinic.task.model.local, before_commit=keep,
            )  # fmt: skip
            self._note(epsilon_spent=ledger.account().epsilon)
        mean = sum(losses) / len(losses) if losses else math.nan
        log.info("round %d: mean loss %.4f", order.round_number, mean)
        self._note(loss=mean if clinic.share_scores else math.nan)


def _trainer(clinic: Clinic, patients: int, noise: float, rate: float, losses: list[float]) -> PrivateTrainer:
    """Of the clinic's model; appends every piece's loss to `losses`, which stays in the clinic unless it says so."""
    training, task = clinic.config.training, clinic.task

    def loss(model: nn.Module, tensors: Tensors) -> Tensor:
        value = task.loss(model, tensors)
        losses.append(float(value.detach()))
        return value

    settings = PrivacySettings(
        noise_multiplier=noise,
        clipping_norm=clinic.config.privacy.clipping_norm if noise else _UNCLIPPED,
        sample_rate=rate,
        patients=patients,
        mode=training.mode,
        patches_at_once=training.patches_at_once,
    )
    network = task.model.network
    return PrivateTrainer(network, build_optimizer(training, network), loss, settings)


def build_optimizer(training: TrainingSection, network: nn.Module) -> torch.optim.Optimizer:
    """Over what is trained. A new one every round: it sees noisy gradients alone."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            trained, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
    return torch.optim.AdamW(trained, lr=training.lr, weight_decay=training.weight_decay)
