"""Keys at rest: standard files, closed to everybody else, and never opened by accident."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvox_compliance.keys import (
    KDF_ROUNDS,
    PASSPHRASE_VARIABLE,
    KeyFileError,
    PublicKey,
    SigningKey,
    ask_passphrase,
    encrypt_private_key,
    generate_key,
    load_private_key,
    load_public_key,
    node_key_fingerprint,
)

PASSPHRASE = b"correct horse battery"
ROUNDS = 1000  # tests exercise the format; one test holds the real number

# RFC 8032, section 7.1, test 2.
RFC_SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "assessor.pem"
    generate_key(path, PASSPHRASE, rounds=ROUNDS)
    return path


def test_signatures_are_those_of_rfc_8032() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET)))
    assert key.public.raw.hex() == RFC_PUBLIC
    assert key.sign(b"\x72").hex() == RFC_SIGNATURE
    assert key.public.verifies(bytes.fromhex(RFC_SIGNATURE), b"\x72")
    assert not key.public.verifies(bytes.fromhex(RFC_SIGNATURE), b"\x73")


def test_a_key_pair_comes_back_from_its_files(key_file: Path) -> None:
    private = load_private_key(key_file, PASSPHRASE)
    public = load_public_key(key_file.with_name("assessor.pem.pub"))
    assert public == private.public
    assert public.verifies(private.sign(b"x"), b"x")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_the_private_file_never_holds_the_secret_in_clear(tmp_path: Path) -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET)))
    pem = encrypt_private_key(key, PASSPHRASE, rounds=ROUNDS)
    body = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    assert bytes.fromhex(RFC_SECRET) not in body
    assert RFC_SECRET not in repr(key)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_the_private_key_and_finds_the_same_public_key(key_file: Path) -> None:
    command = ["openssl", "pkey", "-in", str(key_file), "-passin", "stdin", "-pubout"]
    result = subprocess.run(command, input=PASSPHRASE, capture_output=True, check=True)
    assert result.stdout.decode() == key_file.with_name("assessor.pem.pub").read_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_default_derivation_has_as_many_rounds_as_owasp_asks(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    path.write_bytes(encrypt_private_key(SigningKey.generate(), PASSPHRASE))
    dump = subprocess.run(
        ["openssl", "asn1parse", "-in", str(path)], capture_output=True, check=True, text=True
    ).stdout
    assert KDF_ROUNDS >= 600_000
    assert f"INTEGER           :{KDF_ROUNDS:06X}" in dump
    assert "hmacWithSHA256" in dump
    assert "aes-256-cbc" in dump


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o602, 0o610, 0o644, 0o777])
def test_a_key_that_others_can_touch_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(KeyFileError, match=f"{mode:04o}"):
        load_private_key(key_file, PASSPHRASE)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(key_file: Path) -> None:
    os.chown(key_file, 12345, -1)
    with pytest.raises(KeyFileError, match="another user"):
        load_private_key(key_file, PASSPHRASE)


def test_an_existing_key_is_never_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        generate_key(key_file, PASSPHRASE, rounds=ROUNDS)
    assert key_file.read_bytes() == before


@pytest.mark.parametrize("passphrase", [b"", b"short", b"elevenchars"])
def test_short_passphrases_are_refused(tmp_path: Path, passphrase: bytes) -> None:
    with pytest.raises(KeyFileError, match="12 is the least"):
        generate_key(tmp_path / "k.pem", passphrase)
    assert not (tmp_path / "k.pem").exists()


@pytest.mark.parametrize("passphrase", [b"", b"wrong horse battery", PASSPHRASE + b" "])
def test_a_wrong_passphrase_is_told_apart_from_success(key_file: Path, passphrase: bytes) -> None:
    with pytest.raises(KeyFileError, match="passphrase does not open"):
        load_private_key(key_file, passphrase)


def test_every_truncation_of_a_key_file_is_refused(key_file: Path) -> None:
    pem = key_file.read_bytes()
    for length in range(0, len(pem) - 2, 7):
        key_file.write_bytes(pem[:length])
        with pytest.raises(KeyFileError):
            load_private_key(key_file, PASSPHRASE)


def test_unencrypted_and_foreign_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    clear = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(clear)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="not an encrypted"):
        load_private_key(path, PASSPHRASE)
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSPHRASE),
    )
    path.write_bytes(other)
    with pytest.raises(KeyFileError, match="not Ed25519"):
        load_private_key(path, PASSPHRASE)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="nowhere"):
        generate_key(tmp_path / "nowhere" / "k.pem", PASSPHRASE, rounds=ROUNDS)
    with pytest.raises(KeyFileError, match=r"missing\.pem"):
        load_private_key(tmp_path / "missing.pem", PASSPHRASE)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_private_key(tmp_path, PASSPHRASE)


def test_a_node_key_has_one_fingerprint_in_every_format() -> None:
    # The federation's nodes authenticate with NIST P-384 keys.
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    forms: list[bytes | str] = [
        public.public_bytes(serialization.Encoding.PEM, spki),
        public.public_bytes(serialization.Encoding.DER, spki),
        public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
        public.public_bytes(serialization.Encoding.PEM, spki).decode(),
    ]
    prints = {node_key_fingerprint(form) for form in forms}
    assert len(prints) == 1
    assert node_key_fingerprint(prints.copy().pop()) in prints


@pytest.mark.parametrize(
    "material", ["", "sha256:", "sha256:" + "g" * 64, "sha256:" + "A" * 64, "ssh-rsa nonsense", b"\0"]
)
def test_what_is_no_node_key_is_refused(material: bytes | str) -> None:
    with pytest.raises(KeyFileError, match="node's key"):
        node_key_fingerprint(material)


def test_the_passphrase_comes_from_the_environment_or_a_prompt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")
    assert ask_passphrase("Passphrase: ", allow_prompt=False) == b"from the environment"
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(KeyFileError, match="prompts are off"):
        ask_passphrase("Passphrase: ", allow_prompt=False)
    answers = iter(["one and the same", "another one"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    with pytest.raises(KeyFileError, match="differ"):
        ask_passphrase("Passphrase: ", confirm=True)


def test_a_public_key_has_32_bytes() -> None:
    with pytest.raises(KeyFileError, match="32 bytes, found 31"):
        PublicKey(b"\0" * 31)
