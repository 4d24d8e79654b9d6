"""From what a SuperNode is told to a `Clinic`: a real one from its own file, or a simulated hospital."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedvox.data.store import BrickStore
from fedvox.errors import ConfigError
from fedvox.inference.device import choose_device
from fedvox.training.config import expand
from fedvox_compliance.attestation import AttestationRefused, VerifiedAttestation, verify_attestation
from fedvox_compliance.catalogue import Catalogue, list_profiles, load_catalogue
from fedvox_compliance.dsse import MAX_ENVELOPE_BYTES
from fedvox_compliance.errors import ComplianceError
from fedvox_compliance.files import read_limited
from fedvox_compliance.keys import load_public_key
from fedvox_compliance.trust_file import load_trust_store
from fedvox_federation.client.clinic import Budget, Clinic
from fedvox_federation.client.model import build
from fedvox_federation.client.tasks import Cohort, SegmentationTask, patient_of, split_cohort
from fedvox_federation.config import ClinicConfig, ClinicsSection, FederationConfig, TrustSection
from fedvox_federation.hospitals import PartitionPlan, partition, read_cases
from fedvox_federation.privacy.noise_policy import UNATTESTED, Standing, standing_of

log = logging.getLogger(__name__)

_MAX_KEY_BYTES = 64 * 1024


@dataclass(frozen=True)
class Hospital:
    """A simulated hospital.

    Attributes:
        name: as the partition calls it.
        rows: of the store.
        standing: of its profile.
        profile: the profile's name.
    """

    name: str
    rows: tuple[int, ...]
    standing: Standing
    profile: str


def hospitals(config: ClinicsSection, store: BrickStore) -> tuple[Hospital, ...]:
    """The hospitals of a simulation, in the order of their SuperNodes."""
    cases = read_cases(store, lambda case_id: patient_of(case_id, config.patient_pattern))
    dealt = partition(cases, PartitionPlan(**config.partition.model_dump()))
    profiles = config.profiles
    return tuple(
        Hospital(
            name,
            rows,
            Standing(profile.score, profile.tier, profile.eligible, profile.attested),
            profile.name,
        )
        for number, (name, rows) in enumerate(dealt.items())
        for profile in (profiles[number % len(profiles)],)
    )


def hospital_cohort(config: ClinicsSection, store: BrickStore, hospital: Hospital) -> Cohort:
    """A simulated hospital's patients."""
    return split_cohort(
        store, hospital.rows, pattern=config.patient_pattern, held_out_fraction=config.held_out_fraction
    )


def simulated_name(config: FederationConfig, number: int) -> str:
    """The name of hospital `number`, without its patients and its model; raises as `simulated_clinic` does."""
    return _hospital(config, BrickStore.open(expand(config.clinics.store)), number).name


def simulated_clinic(config: FederationConfig, number: int, *, bundle_sha256: str = "") -> Clinic:
    """Hospital `number`, from 0, of a simulation.

    Raises:
        ConfigError: there is no such hospital.
        FedvoxError: its store or the weights cannot be used.
    """
    store = BrickStore.open(expand(config.clinics.store))
    hospital = _hospital(config, store, number)
    cohort = hospital_cohort(config.clinics, store, hospital)
    device = choose_device(config.training.device)
    return Clinic(
        name=hospital.name,
        config=config,
        task=SegmentationTask(config, build(config), store, cohort, device),
        folder=Path(expand(config.clinics.folder)) / config.name / "clinics" / hospital.name,
        budget=Budget(config.privacy.epsilon, config.privacy.delta),
        standing=hospital.standing,
        simulation=True,
        share_scores=True,
        bundle_sha256=bundle_sha256,
    )


def _hospital(config: FederationConfig, store: BrickStore, number: int) -> Hospital:
    known = hospitals(config.clinics, store)
    if not 0 <= number < len(known):
        raise ConfigError(
            f"there is no hospital {number}: clinics.partition.hospitals is {len(known)}",
            "Start as many SuperNodes as there are hospitals.",
        )
    return known[number]


def real_clinic(config: FederationConfig, own: ClinicConfig, *, bundle_sha256: str = "") -> Clinic:
    """A clinic from its own file.

    Raises:
        FedvoxError: its store or the weights cannot be used.
    """
    store = BrickStore.open(expand(own.store))
    cohort = split_cohort(
        store, range(len(store)), pattern=own.patient_pattern, held_out_fraction=own.held_out_fraction
    )
    device = choose_device(config.training.device)
    verified = _own_attestation(own.trust, config.study, own.name) if own.trust is not None else None
    trust = own.trust
    return Clinic(
        name=own.name,
        config=config,
        task=SegmentationTask(
            config, build(config, pretrained=_weights_of(own, config)), store, cohort, device
        ),
        folder=Path(expand(own.folder)),
        budget=Budget(own.budget_epsilon, own.budget_delta, own.accountant),
        standing=UNATTESTED if verified is None else standing_of(verified),
        share_scores=own.share_scores,
        attestation="" if verified is None or trust is None else _read(trust.attestation).decode(),
        node_key="" if verified is None or trust is None else _read(trust.node_key).decode(),
        bundle_sha256=bundle_sha256,
    )


def presented_attestation(own: ClinicConfig) -> str:
    """The envelope as it lies there, for a server that verifies it; empty where there is none."""
    if own.trust is None:
        return ""
    try:
        return _read(own.trust.attestation).decode(errors="replace")
    except ComplianceError as error:
        log.warning("the clinic's attestation cannot be read: %s", error)
        return ""


def _weights_of(own: ClinicConfig, config: FederationConfig) -> str:
    """Where a real clinic's weights lie: the server may name a file, and nothing that is fetched from elsewhere.

    An address with variables of the clinic's environment in it would tell them to whoever answers there.

    Raises:
        ConfigError: it is an address, and not the clinic's own.
    """
    if own.pretrained is None and "://" in config.pretrained:
        raise ConfigError(
            f"the study's weights are at {config.pretrained}, from where this clinic fetches nothing by itself",
            "Copy them, and name the copy in the clinic's own file (pretrained: …).",
        )
    return own.pretrained or config.pretrained


def _own_attestation(trust: TrustSection, study: str, clinic: str) -> VerifiedAttestation | None:
    """None, and a line in the clinic's log, where it does not hold: it then counts as none."""
    now = dt.datetime.now(dt.UTC)
    try:
        root = load_public_key(Path(expand(trust.root_key)))
        store = load_trust_store(Path(expand(trust.trust_store)), root=root, now=now)
        return verify_attestation(
            _read(trust.attestation),
            store,
            now=now,
            study=study,
            node_key=_read(trust.node_key),
            clinic=clinic,
            catalogues=_catalogues(trust.profiles),
        )
    except (AttestationRefused, ComplianceError) as error:
        log.warning("the clinic's own attestation does not hold: %s", error)
        return None


@lru_cache(maxsize=4)
def _catalogues(profiles: tuple[str, ...] | None) -> tuple[Catalogue, ...]:
    return tuple(load_catalogue(profile) for profile in profiles or list_profiles())


def _read(path: str) -> bytes:
    return read_limited(Path(expand(path)), max(MAX_ENVELOPE_BYTES, _MAX_KEY_BYTES))
