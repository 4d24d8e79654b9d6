"""What the server itself knows of a clinic's standing: from a signed attestation, or from a simulation's profile.

A clinic's own word about its score counts for nothing. An attestation that does not verify is no attestation:
score 0, tier 0.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedvox.errors import ConfigError
from fedvox.training.config import expand
from fedvox_compliance.attestation import AttestationRefused, verify_attestation
from fedvox_compliance.catalogue import Catalogue, list_profiles, load_catalogue
from fedvox_compliance.errors import ComplianceError
from fedvox_compliance.keys import load_public_key
from fedvox_compliance.trust import TrustStore
from fedvox_compliance.trust_file import load_trust_store
from fedvox_federation.config import ProfileSection, StudyTrustSection
from fedvox_federation.privacy.noise_policy import UNATTESTED, Standing, standing_of
from fedvox_federation.protocol import ClinicReply


@dataclass(frozen=True)
class Judged:
    """A standing and, where there is no valid attestation, why.

    Attributes:
        standing: to rely on.
        note: for the round's table; empty where there is nothing to say.
    """

    standing: Standing
    note: str = ""


class Registry(Protocol):
    """Knows the standing of whoever replies."""

    def judge(self, reply: ClinicReply, node_key: bytes) -> Judged:
        """The standing of the clinic behind a reply.

        Args:
            reply: see `ClinicReply`.
            node_key: with which the replying node authenticated; empty where Flower does not tell.
        """
        ...


def utc_now() -> dt.datetime:
    """The present moment."""
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class AttestationRegistry:
    """Believes what an assessor in the study's trust store has signed, and nobody else.

    Args:
        study: for which an attestation must be.
        trust: the verified store; None believes nobody.
        catalogues: accepted.
        now: tells the time, so that an attestation may expire in the middle of a run.
    """

    study: str
    trust: TrustStore | None
    catalogues: tuple[Catalogue, ...] = ()
    now: Callable[[], dt.datetime] = utc_now

    @classmethod
    def load(cls, study: str, section: StudyTrustSection | None) -> AttestationRegistry:
        """From the study's files.

        Raises:
            ConfigError: a file is missing, or the trust store is not what the root key signed.
        """
        if section is None:
            return cls(study, None)
        try:
            store = load_trust_store(
                Path(expand(section.trust_store)),
                root=load_public_key(Path(expand(section.root_key))),
                now=utc_now(),
            )
            return cls(study, store, _catalogues(section.profiles))
        except ComplianceError as error:
            raise ConfigError(f"server.trust: {error.message}", error.remedy) from error

    def judge(self, reply: ClinicReply, node_key: bytes) -> Judged:
        """See `Registry`."""
        if not reply.attestation:
            return Judged(UNATTESTED, "no attestation")
        if self.trust is None:
            return Judged(UNATTESTED, "the server has no trust store")
        if not node_key:
            return Judged(UNATTESTED, "the node's key is unknown")
        try:
            verified = verify_attestation(
                reply.attestation.encode(),
                self.trust,
                now=self.now(),
                study=self.study,
                node_key=node_key,
                clinic=reply.clinic,
                catalogues=self.catalogues,
            )
        except AttestationRefused as refused:
            return Judged(UNATTESTED, f"attestation: {refused.reason.value}")
        except ComplianceError:  # a node key in no known form
            return Judged(UNATTESTED, "attestation: the node's key is in no known form")
        return Judged(standing_of(verified))


@dataclass(frozen=True)
class ProfileRegistry:
    """A simulation's hospitals have the standing that the configuration deals them.

    Args:
        profiles: dealt to `hospital_01`, `hospital_02` … in turn.
    """

    profiles: tuple[ProfileSection, ...]

    def judge(self, reply: ClinicReply, node_key: bytes) -> Judged:  # noqa: ARG002 - nobody authenticates here
        """See `Registry`."""
        number = reply.clinic.rpartition("_")[2]
        if not number.isdecimal() or int(number) < 1:
            return Judged(UNATTESTED, "no hospital of this simulation")
        dealt = self.profiles[(int(number) - 1) % len(self.profiles)]
        if not dealt.attested:
            return Judged(UNATTESTED, "no attestation")
        return Judged(Standing(dealt.score, dealt.tier, dealt.eligible, attested=True))


def _catalogues(profiles: Iterable[str]) -> tuple[Catalogue, ...]:
    return tuple(load_catalogue(profile) for profile in (tuple(profiles) or tuple(list_profiles())))
