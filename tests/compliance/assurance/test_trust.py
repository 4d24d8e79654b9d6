"""The trust store: signed by the root, never rolled back, never stale, never granting too much."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox_compliance.errors import UsageError
from fedvox_compliance.keys import SigningKey
from fedvox_compliance.trust import RevocationReason, Role, Rotation, TrustedKey, TrustStore, TrustStoreError
from fedvox_compliance.trust_file import (
    STORE_VALID_DAYS,
    add_key,
    add_rotated_key,
    load_trust_store,
    new_store,
    renew,
    revoke_key,
    revoke_serial,
    rotate_root,
    save_trust_store,
)

SERIAL = "ab" * 16


@pytest.fixture
def root(make: SimpleNamespace) -> SigningKey:
    key: SigningKey = make.key(50)
    return key


@pytest.fixture
def path(tmp_path: Path, federation: Any, root: SigningKey) -> Path:
    file = tmp_path / "trust.json"
    save_trust_store(file, federation.store, root)
    return file


def edit(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_signed_store_comes_back_equal(
    path: Path, federation: Any, root: SigningKey, make: SimpleNamespace
) -> None:
    assert load_trust_store(path, root=root.public, now=make.now) == federation.store


def test_white_space_is_free_so_that_people_may_reformat_the_file(
    path: Path, root: SigningKey, make: SimpleNamespace
) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    load_trust_store(path, root=root.public, now=make.now)


def test_only_the_pinned_root_counts(path: Path, make: SimpleNamespace) -> None:
    with pytest.raises(TrustStoreError, match="not signed by the root key"):
        load_trust_store(path, root=make.key(51).public, now=make.now)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["signed"].update(sequence=2),
        lambda d: d["signed"].update(valid_until="2036-01-01T00:00:00Z"),
        lambda d: d["signed"]["keys"][3].update(roles=["assessor"]),
        lambda d: d["signed"]["keys"][4].update(studies=[]),
        lambda d: d["signed"]["keys"].pop(),
        lambda d: d["signed"].update(required_signatures=2),
        lambda d: d["signed"].pop("name"),
        lambda d: d["signatures"][0].update(signature="A" * 86 + "=="),
        lambda d: d["signatures"][0].update(key_id="0" * 64),
    ],
    ids=[
        "sequence",
        "validity",
        "role",
        "studies",
        "key removed",
        "threshold",
        "field removed",
        "signature",
        "signer",
    ],
)
def test_any_edit_breaks_the_store(change: Any, path: Path, root: SigningKey, make: SimpleNamespace) -> None:
    edit(path, change)
    with pytest.raises(TrustStoreError, match="not signed by the root key"):
        load_trust_store(path, root=root.public, now=make.now)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["signed"].update(extra=1), "signed.extra"),
        (lambda d: d.update(signatures=[]), "signatures"),
        (lambda d: d["signed"]["keys"][0].update(public_key="short"), r"signed\.keys\.0\.public_key"),
        (lambda d: d["signed"]["keys"][0].update(roles=["god"]), r"signed\.keys\.0\.roles"),
        (lambda d: d["signed"]["keys"].append(d["signed"]["keys"][0]), "listed twice"),
        (lambda d: d["signed"].update(updated_at="yesterday"), "updated_at"),
    ],
)
def test_malformed_stores_name_the_field(
    change: Any, why: str, path: Path, root: SigningKey, make: SimpleNamespace
) -> None:
    edit(path, change)
    with pytest.raises(TrustStoreError, match=why):
        load_trust_store(path, root=root.public, now=make.now)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_arbitrary_files_are_refused_without_a_traceback(
    data: bytes, tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "trust.json"
    file.write_bytes(data)
    with pytest.raises(TrustStoreError):
        load_trust_store(file, root=make.key(50).public, now=make.now)


def test_a_rolled_back_store_is_refused(
    path: Path, federation: Any, root: SigningKey, make: SimpleNamespace
) -> None:
    old = path.read_bytes()
    store = revoke_serial(federation.store, SERIAL, make.now)
    save_trust_store(path, store, root)
    assert load_trust_store(path, root=root.public, now=make.now).is_serial_revoked(SERIAL)
    path.write_bytes(old)
    with pytest.raises(TrustStoreError, match="sequence 1 is older than 2"):
        load_trust_store(path, root=root.public, now=make.now, min_sequence=store.sequence)


def test_a_store_that_nobody_tends_goes_stale_and_can_be_renewed(
    path: Path, federation: Any, root: SigningKey, make: SimpleNamespace
) -> None:
    later = federation.store.valid_until
    with pytest.raises(TrustStoreError, match="went stale"):
        load_trust_store(path, root=root.public, now=later)
    stale = load_trust_store(path, root=root.public, now=later, allow_stale=True)
    save_trust_store(path, renew(stale, later), root)
    fresh = load_trust_store(path, root=root.public, now=later)
    assert fresh.sequence == 2
    assert fresh.valid_until == later + STORE_VALID_DAYS * make.day


def test_a_store_from_the_future_is_refused(path: Path, root: SigningKey, make: SimpleNamespace) -> None:
    with pytest.raises(TrustStoreError, match="signed in the future"):
        load_trust_store(path, root=root.public, now=make.now - 3 * make.day)


def test_a_missing_or_huge_file_is_named(tmp_path: Path, root: SigningKey, make: SimpleNamespace) -> None:
    with pytest.raises(TrustStoreError, match="none\\.json"):
        load_trust_store(tmp_path / "none.json", root=root.public, now=make.now)
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(33 * 1024 * 1024)
    with pytest.raises(TrustStoreError, match="larger than"):
        load_trust_store(huge, root=root.public, now=make.now)


def test_the_old_key_signs_in_the_new_one_and_is_retired(make: SimpleNamespace, federation: Any) -> None:
    rotation = Rotation.make(make.key(1), make.key(60).public, make.now)
    store = add_rotated_key(federation.store, rotation, make.now + 300 * make.day, make.now)
    old, new = store.find(make.key(1).public.key_id), store.find(make.key(60).public.key_id)
    assert new is not None
    assert old is not None
    assert (new.name, new.roles, new.studies) == (old.name, old.roles, old.studies)
    assert old.revoked is not None
    assert old.revoked.reason is RevocationReason.RETIRED
    assert (
        federation.verify(
            federation.envelope(make.key(60), issued_at=make.now, assessor__name=old.name), store=store
        ).tier
        == 3
    )
    assert (
        federation.verify(federation.envelope(make.key(1)), store=store).tier == 3
    )  # signed before the rotation


def test_a_rotation_that_the_old_key_did_not_sign_is_refused(make: SimpleNamespace, federation: Any) -> None:
    forged = Rotation.make(make.key(99), make.key(60).public, make.now).model_copy(
        update={"old_key": make.key(1).public.base64}
    )
    assert not forged.holds()
    with pytest.raises(TrustStoreError, match="not signed by a key of this store"):
        add_rotated_key(federation.store, forged, make.now + make.day, make.now)
    stranger = Rotation.make(make.key(99), make.key(60).public, make.now)
    with pytest.raises(TrustStoreError, match="not signed by a key of this store"):
        add_rotated_key(federation.store, stranger, make.now + make.day, make.now)


def test_a_rotation_is_bound_to_the_new_key_and_its_moment(make: SimpleNamespace) -> None:
    rotation = Rotation.make(make.key(1), make.key(60).public, make.now)
    assert rotation.holds()
    assert not rotation.model_copy(update={"new_key": make.key(61).public.base64}).holds()
    assert not rotation.model_copy(update={"at": make.now + dt.timedelta(seconds=1)}).holds()


def test_a_revoked_key_cannot_name_its_successor(make: SimpleNamespace, federation: Any) -> None:
    store = revoke_key(federation.store, make.key(1).public.key_id, RevocationReason.COMPROMISED, make.now)
    rotation = Rotation.make(make.key(1), make.key(60).public, make.now)
    with pytest.raises(TrustStoreError, match="is revoked"):
        add_rotated_key(store, rotation, make.now + make.day, make.now)


@pytest.mark.parametrize(
    "rights", [{"roles": (Role.ASSESSOR,)}, {"studies": ()}, {"studies": ("Another study", "MAMA-MIA 2027")}]
)
def test_a_rotated_key_never_gets_more_rights_than_its_predecessor(
    rights: dict[str, Any], make: SimpleNamespace
) -> None:
    old = make.trusted(make.key(5), "E", Role.REVIEWER, studies=("Another study",))
    word = Rotation.make(make.key(5), make.key(60).public, make.now)
    fields = {"studies": ("Another study",)} | rights
    new = make.trusted(make.key(60), "E", *fields.pop("roles", (Role.REVIEWER,)), endorsement=word, **fields)
    with pytest.raises(ValueError, match="more rights"):
        TrustStore(updated_at=make.now, valid_until=make.now + make.day, keys=(old, new))


def test_the_root_rotates_by_its_own_signature(
    path: Path, federation: Any, root: SigningKey, make: SimpleNamespace
) -> None:
    fresh = make.key(51)
    store = rotate_root(federation.store, root, fresh.public, make.now)
    save_trust_store(path, store, fresh)
    assert (
        load_trust_store(path, root=root.public, now=make.now).sequence == 2
    )  # servers that pin the old root
    assert (
        load_trust_store(path, root=fresh.public, now=make.now).sequence == 2
    )  # and those that pin the new one
    save_trust_store(path, store, root)
    with pytest.raises(TrustStoreError, match="not signed by the root key"):
        load_trust_store(path, root=root.public, now=make.now)  # the old root has signed itself out


def test_a_stranger_cannot_rotate_the_root(
    path: Path, federation: Any, root: SigningKey, make: SimpleNamespace
) -> None:
    thief = make.key(99)
    forged = rotate_root(federation.store, thief, thief.public, make.now)
    lie = forged.root_rotations[0].model_copy(update={"old_key": root.public.base64})
    save_trust_store(path, forged.model_copy(update={"root_rotations": (lie,)}), thief)
    with pytest.raises(TrustStoreError, match="not signed by the old one"):
        load_trust_store(path, root=root.public, now=make.now)


def test_revocations_only_ever_get_stricter(federation: Any, make: SimpleNamespace) -> None:
    key_id = make.key(1).public.key_id
    retired = revoke_key(federation.store, key_id[:16], RevocationReason.RETIRED, make.now)
    stolen = revoke_key(retired, key_id, RevocationReason.COMPROMISED, make.now)
    with pytest.raises(TrustStoreError, match="compromised already"):
        revoke_key(stolen, key_id, RevocationReason.RETIRED, make.now)
    with pytest.raises(TrustStoreError, match="listed already"):
        add_key(stolen, make.trusted(make.key(1), "again", Role.ASSESSOR), make.now)


@pytest.mark.parametrize("key_id", ["", "ab", "0" * 64, "0" * 15])
def test_a_key_to_revoke_must_be_named_beyond_doubt(
    key_id: str, federation: Any, make: SimpleNamespace
) -> None:
    with pytest.raises(TrustStoreError, match="0 keys match"):
        revoke_key(federation.store, key_id, RevocationReason.RETIRED, make.now)


def test_serials_are_checked_and_withdrawn_once(federation: Any, make: SimpleNamespace) -> None:
    with pytest.raises(TrustStoreError, match="is not a serial"):
        revoke_serial(federation.store, "nonsense", make.now)
    store = revoke_serial(federation.store, SERIAL, make.now, note="evidence was false")
    assert store.revoked_serials[0].note == "evidence was false"
    with pytest.raises(TrustStoreError, match="withdrawn already"):
        revoke_serial(store, SERIAL, make.now)


def test_every_change_raises_the_sequence(make: SimpleNamespace) -> None:
    store = new_store("study", make.now)
    store = add_key(store, make.trusted(make.key(1), "A", Role.ASSESSOR), make.now)
    store = revoke_serial(store, SERIAL, make.now)
    store = revoke_key(store, make.key(1).public.key_id, RevocationReason.RETIRED, make.now)
    assert renew(store, make.now).sequence == 5


def test_a_key_with_an_impossible_life_is_refused(make: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="ends before it begins"):
        make.trusted(make.key(1), "A", Role.ASSESSOR, valid_until=make.now - 301 * make.day)
    word = Rotation.make(make.key(1), make.key(61).public, make.now)
    with pytest.raises(ValueError, match="for another key"):
        make.trusted(make.key(60), "A", Role.ASSESSOR, endorsement=word)


def test_a_write_that_fails_leaves_the_old_store(
    path: Path, federation: Any, root: SigningKey, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UsageError, match="No space"):
        save_trust_store(path, renew(federation.store, make.now), root)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["trust.json"]


def test_key_models_are_frozen(federation: Any) -> None:
    key: TrustedKey = federation.store.keys[0]
    with pytest.raises(ValueError, match="frozen"):
        key.name = "other"  # type: ignore[misc]
