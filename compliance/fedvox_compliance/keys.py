"""Assessors' Ed25519 keys: made, kept encrypted, read back only when nobody else can read them.

A private key is a PKCS#8 file in PEM, encrypted under a passphrase (PBES2: AES-256-CBC, PBKDF2 with
HMAC-SHA-256), which `openssl pkey` reads as well. The envelope is built here because the writer of the
`cryptography` package fixes PBKDF2 at 2,048 rounds, three hundred times below what OWASP asks for.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from fedvox_compliance.errors import UsageError

KDF_ROUNDS = 600_000
"""PBKDF2-HMAC-SHA-256 rounds (OWASP Password Storage Cheat Sheet, 2023); about 0.2 s on an office PC."""

MIN_PASSPHRASE_LENGTH = 12
"""Characters; shorter ones fall to offline guessing whatever the rounds (NIST SP 800-63B asks for 8)."""

PASSPHRASE_VARIABLE = "FEDVOX_KEY_PASSPHRASE"
"""Environment variable that unattended runs may set instead of typing the passphrase."""


class KeyFileError(UsageError):
    """A key file is missing, unprotected, damaged or of another kind."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key and its identifier.

    Args:
        raw: the 32 bytes of RFC 8032.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise KeyFileError(
                f"an Ed25519 public key has 32 bytes, found {len(self.raw)}",
                "Copy the .pub file of the assessor again.",
            )

    @property
    def key_id(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo in DER, 64 hexadecimal digits."""
        return hashlib.sha256(self._spki(serialization.Encoding.DER)).hexdigest()

    @property
    def pem(self) -> str:
        """SubjectPublicKeyInfo in PEM, as `.pub` files hold it."""
        return self._spki(serialization.Encoding.PEM).decode("ascii")

    @property
    def base64(self) -> str:
        """The 32 raw bytes in base64, as trust stores hold them."""
        return base64.b64encode(self.raw).decode("ascii")

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (64 bytes) is this key's over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def _spki(self, encoding: serialization.Encoding) -> bytes:
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class SigningKey:
    """A private key in memory. Its representation never shows the secret.

    Args:
        secret: the key object of `cryptography`.
    """

    secret: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.public.key_id[:16]}…)"

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> PublicKey:
        """The public half."""
        raw = self.secret.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return PublicKey(raw)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of RFC 8032 over `message`."""
        return self.secret.sign(message)


def generate_key(path: Path, passphrase: bytes, *, rounds: int = KDF_ROUNDS) -> PublicKey:
    """Make a key pair: `path` (private, encrypted, mode 0600) and `path` + `.pub`.

    Args:
        path: file to create; never overwritten.
        passphrase: at least `MIN_PASSPHRASE_LENGTH` bytes.
        rounds: PBKDF2 rounds.

    Returns:
        The public key.

    Raises:
        KeyFileError: the file exists, the folder is missing, or the passphrase is too short.
    """
    if len(passphrase) < MIN_PASSPHRASE_LENGTH:
        raise KeyFileError(
            f"the passphrase has {len(passphrase)} characters; {MIN_PASSPHRASE_LENGTH} is the least",
            "Choose four or more unrelated words.",
        )
    key = SigningKey.generate()
    public_path = path.with_name(path.name + ".pub")
    _create(path, encrypt_private_key(key, passphrase, rounds=rounds), 0o600)
    _create(public_path, key.public.pem.encode("ascii"), 0o644)
    return key.public


def load_private_key(path: Path, passphrase: bytes) -> SigningKey:
    """Read an encrypted private key that only its owner can read.

    Raises:
        KeyFileError: missing, readable by group or others, owned by somebody else, not encrypted, not
            Ed25519, or the passphrase does not open it.
    """
    pem = _read_secret(path)
    if b"ENCRYPTED PRIVATE KEY" not in pem:
        raise KeyFileError(
            f"{path}: not an encrypted PKCS#8 private key",
            "Make one with `fedvox-compliance keygen`, or encrypt yours with `openssl pkcs8 -topk8`.",
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase or b"\0")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"{path}: the passphrase does not open this key, or the file is damaged",
            "Check the passphrase; restore the file from its backup.",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(
            f"{path}: holds another kind of key, not Ed25519", "Make one with `fedvox-compliance keygen`."
        )
    return SigningKey(key)


def load_public_key(path: Path) -> PublicKey:
    """Read a `.pub` file (SubjectPublicKeyInfo in PEM).

    Raises:
        KeyFileError: missing, unreadable, or not an Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}", "Name the .pub file that `keygen` wrote.") from error
    except ValueError as error:
        raise KeyFileError(
            f"{path}: not a public key in PEM", "Name the .pub file that `keygen` wrote."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: holds another kind of key, not Ed25519", "Name an assessor's .pub file.")
    return PublicKey(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def node_key_fingerprint(material: bytes | str) -> str:
    """Fingerprint of the key with which a clinic's node authenticates to the federation.

    The node's key need not be Ed25519 (Flower's SuperNodes use NIST P-384), so attestations bind its digest.

    Args:
        material: PEM, DER or OpenSSH public key, or a fingerprint as this function returns it.

    Returns:
        `sha256:` and 64 hexadecimal digits over the SubjectPublicKeyInfo in DER.

    Raises:
        KeyFileError: not a public key in any of these forms.
    """
    data = material.encode("utf-8") if isinstance(material, str) else material
    text = data.decode("ascii", "replace").strip()
    digits = text.removeprefix("sha256:")
    if text.startswith("sha256:") and len(digits) == 64 and not set(digits) - set("0123456789abcdef"):
        return text
    loaders = (
        serialization.load_pem_public_key,
        serialization.load_ssh_public_key,
        serialization.load_der_public_key,
    )
    for load in loaders:
        try:
            key = load(data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return "sha256:" + hashlib.sha256(spki).hexdigest()
    raise KeyFileError(
        "the node's key is neither PEM, DER, OpenSSH nor a sha256: fingerprint", "Name the node's .pub file."
    )


def ask_passphrase(prompt: str, *, confirm: bool = False, allow_prompt: bool = True) -> bytes:
    """The passphrase from the environment, or typed without echo; never from the command line.

    Args:
        prompt: what to show.
        confirm: ask twice and compare.
        allow_prompt: False under `--no-input`.

    Raises:
        KeyFileError: nothing to ask with, or the two entries differ.
    """
    found = os.environ.get(PASSPHRASE_VARIABLE)
    if found is not None:
        return found.encode("utf-8")
    if not allow_prompt:
        raise KeyFileError("no passphrase is given and prompts are off", f"Set {PASSPHRASE_VARIABLE}.")
    first = getpass.getpass(prompt)
    if confirm and getpass.getpass("Repeat it: ") != first:
        raise KeyFileError("the two passphrases differ", "Type the same passphrase twice.")
    return first.encode("utf-8")


def encrypt_private_key(key: SigningKey, passphrase: bytes, *, rounds: int = KDF_ROUNDS) -> bytes:
    """EncryptedPrivateKeyInfo (RFC 5958, RFC 8018) of a key, in PEM."""
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    derived = PBKDF2HMAC(hashes.SHA256(), 32, salt, rounds).derive(passphrase)
    plain = key.secret.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(derived), modes.CBC(iv)).encryptor()
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    der = _sequence(_pbes2(salt, rounds, iv), _der(0x04, sealed))
    body = base64.encodebytes(der).decode("ascii").replace("\n", "")
    lines = [body[i : i + 64] for i in range(0, len(body), 64)]
    return "\n".join(
        ["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]
    ).encode()


def _pbes2(salt: bytes, rounds: int, iv: bytes) -> bytes:
    """AlgorithmIdentifier of PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC (RFC 8018, appendix A)."""
    pbes2, pbkdf2 = _oid("2a864886f70d01050d"), _oid("2a864886f70d01050c")
    hmac_sha256, aes_256_cbc = _oid("2a864886f70d0209"), _oid("60864801650304012a")
    count = rounds.to_bytes(rounds.bit_length() // 8 + 1, "big")
    prf = _sequence(hmac_sha256, _der(0x05, b""))
    kdf = _sequence(pbkdf2, _sequence(_der(0x04, salt), _der(0x02, count), prf))
    return _sequence(pbes2, _sequence(kdf, _sequence(aes_256_cbc, _der(0x04, iv))))


def _oid(encoded: str) -> bytes:
    return _der(0x06, bytes.fromhex(encoded))


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([0x81, size])  # nothing here reaches 256 bytes
    return bytes([tag]) + length + content


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file with its final mode from the first instant; refuse to overwrite."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise KeyFileError(
            f"{path}: exists already", "Choose another name; a key is never overwritten."
        ) from error
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror}", "Name a file in an existing folder that you can write."
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_secret(path: Path) -> bytes:
    """Read a file after checking, on the open descriptor, that only its owner can read it."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
        )  # a named pipe must not hang us
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror}", "Name the private key that `keygen` wrote."
        ) from error
    try:
        _check_private(path, os.fstat(descriptor))
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _check_private(path: Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise KeyFileError(f"{path}: not a regular file", "Name the private key that `keygen` wrote.")
    if os.name != "posix":
        return  # Windows has access lists instead of modes; the passphrase protects the file there
    if state.st_mode & 0o077:
        raise KeyFileError(
            f"{path}: others can access this private key (mode {stat.S_IMODE(state.st_mode):04o})",
            f"Treat it as leaked if the machine is shared; otherwise: chmod 600 {path}",
        )
    if state.st_uid != os.geteuid():
        raise KeyFileError(f"{path}: belongs to another user", "Use a key of your own account.")
