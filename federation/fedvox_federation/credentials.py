"""Keys and certificates with which SuperLink and SuperNodes know each other.

    ca.pem, ca.key                a certificate authority of the study's own; the key stays with the coordinator
    superlink.pem, superlink.key  the SuperLink's, signed by it, for the names under which clinics reach it
    NAME, NAME.pub                a SuperNode's key pair, made in the clinic; only the .pub leaves it

Private keys are readable by their owner alone, and nothing that exists is overwritten.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedvox.errors import ConfigError, StorageError

PrivateKey = ec.EllipticCurvePrivateKey

_LONGEST_STUDY = 50
"""A certificate's common name has 64 characters; ` federation` is appended."""
_BACKDATED = dt.timedelta(minutes=5)  # for clocks that are behind


def make_certificates(
    folder: Path, hosts: Sequence[str], *, days: int = 365, study: str = "fedvox"
) -> tuple[Path, Path, Path]:
    """Make a certificate authority and the SuperLink's certificate.

    Args:
        folder: for the four files.
        hosts: DNS names and IP addresses under which clinics reach the SuperLink.
        days: until both expire.
        study: names the authority.

    Returns:
        The authority's certificate, which every clinic gets, and the SuperLink's certificate and key.

    Raises:
        ConfigError: no hosts, or what is no host name.
        StorageError: a file exists already, or the folder cannot be made.
    """
    _check_names(hosts, study)
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    authority_key, server_key = (
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP384R1()),
    )
    authority = _authority(authority_key, f"{study} federation", end)
    server = _server(server_key, authority, authority_key, hosts, end)
    paths = [folder / name for name in ("ca.pem", "ca.key", "superlink.pem", "superlink.key")]
    _refuse_existing(paths)
    _make(folder)
    contents = (_pem(authority), _private(authority_key), _pem(server), _private(server_key))
    for path, content in zip(paths, contents, strict=True):
        _write(path, content, secret=path.suffix == ".key")
    return paths[0], paths[2], paths[3]


def make_node_key(path: Path) -> Path:
    """Make a SuperNode's key pair, as `flower-supernode` and `flwr supernode register` read it.

    Args:
        path: of the private key; the public one is beside it, with `.pub` appended.

    Returns:
        The public key's path.

    Raises:
        StorageError: one of the files exists already, or the folder cannot be made.
    """
    public = path.with_name(path.name + ".pub")
    _refuse_existing([path, public])
    key = ec.generate_private_key(ec.SECP384R1())
    _make(path.parent)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    _write(path, secret, secret=True)
    told = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(public, told + b"\n", secret=False)
    return public


def _authority(key: PrivateKey, name: str, end: dt.datetime) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _builder(subject, subject, key, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _server(
    key: PrivateKey,
    authority: x509.Certificate,
    authority_key: PrivateKey,
    hosts: Sequence[str],
    end: dt.datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(subject, authority.subject, key, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.now(dt.UTC) - _BACKDATED)
        .not_valid_after(end)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _check_names(hosts: Sequence[str], study: str) -> None:
    if not hosts:
        raise ConfigError("a certificate needs names", "Give the SuperLink's host name or IP address.")
    for host in hosts:
        if not _is_host(host):
            raise ConfigError(f"{host!r} is no host name and no IP address", "Such as fl.example.org.")
    if not 1 <= len(study) <= _LONGEST_STUDY:
        raise ConfigError(f"study: {study!r}", f"Give a name of 1 to {_LONGEST_STUDY} characters.")


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return len(host) <= 253 and bool(re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", host))
    return True


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be made: {error.strerror}", "Name a folder that you may write."
        ) from error


def _refuse_existing(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists():
            raise StorageError(f"{path} exists already", "Choose another folder, or move the old file away.")


def _write(path: Path, content: bytes, *, secret: bool) -> None:
    """Created with its final rights, so that a secret is at no moment readable by others."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", "Name a folder that you may write.") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
