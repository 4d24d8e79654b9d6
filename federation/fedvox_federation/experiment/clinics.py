"""The clinics of the experiment: folders of answers, attestations and a trust store, all real, on disk.

    FOLDER/
        clinic_01/          answers and documents, for `fedvox-compliance show` and the like
        clinic_01.json      the signed attestation
        clinic_01.pub       the node's public key, for which it is
        trust.json          the trust store, signed by the study office
        root.pub            whose key that is

The standings are never stored: they are what verification says, every time anew.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedvox.storage import locate, write_atomic
from fedvox_compliance.attestation import verify_attestation
from fedvox_compliance.catalogue import load_catalogue
from fedvox_compliance.keys import SigningKey, load_public_key
from fedvox_compliance.trust_file import load_trust_store, save_trust_store
from fedvox_federation.privacy.noise_policy import Standing, standing_of
from fedvox_federation.site_profiles import PROFILES, SiteProfile, StudyOffice, write_answers

STUDY = "compliance experiment"
ROSTER = (
    "university", "university", "well-equipped",
    "district", "district", "under-resourced", "under-resourced", "under-resourced",
)  # fmt: skip
"""Profiles of the clinics: three that everybody would invite, and five that a strict study would not."""
COMPLIANT_FROM_TIER = 3
_LIST = "clinics.json"


@dataclass(frozen=True)
class AttestedClinic:
    """A clinic as the study knows it.

    Attributes:
        name: such as `clinic_01`.
        profile: what kind of clinic it is.
        standing: of its verified attestation.
    """

    name: str
    profile: SiteProfile
    standing: Standing

    @property
    def compliant(self) -> bool:
        """Whether a strict study would invite it."""
        return self.standing.eligible and self.standing.tier >= COMPLIANT_FROM_TIER


def attested_clinics(folder: Path, *, now: dt.datetime | None = None) -> dict[str, AttestedClinic]:
    """The clinics of a folder, which is filled if it is empty.

    Args:
        folder: see the module.
        now: the present by default.

    Raises:
        AttestationRefused, TrustStoreError: what is there is not valid (any more).
    """
    moment = now or dt.datetime.now(dt.UTC)
    if not (folder / _LIST).is_file():
        _assess_all(folder, moment)
    profiles: dict[str, str] = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    store = load_trust_store(folder / "trust.json", root=load_public_key(folder / "root.pub"), now=moment)
    found = {}
    for name, profile in profiles.items():
        verified = verify_attestation(
            (folder / f"{name}.json").read_bytes(),
            store,
            now=moment,
            study=STUDY,
            node_key=(folder / f"{name}.pub").read_text(encoding="ascii"),
            clinic=name,
            catalogues=[load_catalogue()],
        )
        found[name] = AttestedClinic(name, PROFILES[profile], standing_of(verified))
    return found


def _assess_all(folder: Path, now: dt.datetime) -> None:
    root, office = SigningKey.generate(), StudyOffice.open(STUDY, now)
    clinics: Mapping[str, str] = {f"clinic_{n:02}": profile for n, profile in enumerate(ROSTER, start=1)}
    for name, profile in clinics.items():
        space = write_answers(PROFILES[profile], name, _fresh(folder / name), now=now)
        node = SigningKey.generate().public.pem
        envelope, _ = office.assess(PROFILES[profile], space, node, now=now)
        _write(folder / f"{name}.json", envelope)
        _write(folder / f"{name}.pub", node.encode("ascii"))
    save_trust_store(folder / "trust.json", office.store, root)
    _write(folder / "root.pub", root.public.pem.encode("ascii"))
    _write(folder / _LIST, json.dumps(clinics, indent=1).encode())  # last: without it nothing counts


def _fresh(folder: Path) -> Path:
    """What an interrupted start has left is put aside, since its keys are gone."""
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _write(path: Path, data: bytes) -> None:
    write_atomic(locate(path), data)
