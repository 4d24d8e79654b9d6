"""Start the review page: a socket first, then the address, then the server."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fedvox.curation.store import LabelStore
from fedvox.errors import ConfigError

if TYPE_CHECKING:
    from fedvox.curation.review.guard import Guard

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """Where to serve.

    Args:
        host: an IP address of this computer.
        port: 0 for a free one.
        certificate: PEM file; needed wherever the address is not this computer's own.
        key: PEM file of its key.
    """

    host: str = LOOPBACK
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        try:
            address = ip_address(self.host)
        except ValueError:
            raise ConfigError(
                f"--host {self.host!r} is no IP address", f"Give one, such as {LOOPBACK}."
            ) from None
        if address.is_unspecified:
            raise ConfigError(
                f"--host {self.host} means every address of this computer",
                "Give the one that people will open.",
            )
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--certificate and --key belong together", "Give both, or neither.")
        if not address.is_loopback and self.certificate is None:
            raise ConfigError(
                f"--host {self.host}: images of patients would cross the network unencrypted",
                "Give --certificate and --key, or serve on 127.0.0.1 and let people come through an SSH tunnel.",
            )
        for option, file in (("--certificate", self.certificate), ("--key", self.key)):
            if file is not None and not file.is_file():
                raise ConfigError(f"{option} {file} is not there", "Correct the path.")


def serve(store: LabelStore, address: Address, *, person: str | None, role: str, lease_s: float) -> None:
    """Serve a store's review page until interrupted.

    Args:
        store: that is reviewed.
        address: where.
        person: who is admitted with a new token, which the printed address holds; None for nobody.
        role: of that person.
        lease_s: for how long a case that was handed out is kept for that person.

    Raises:
        ConfigError: the port is taken, nobody is admitted, the certificate is unusable, or the extra is missing.
    """
    uvicorn = _uvicorn()
    from fedvox.curation.review.app import create_app

    listener = bind(address)
    try:
        origin = _origin(address, listener)
        app = create_app(store, origin=origin, lease_s=lease_s)
        config = _configured(uvicorn, app, address)
        token = _admit(store, person, role)
        sys.stdout.write(f"{origin}/{'' if token is None else f'?token={token}'}\n")
        sys.stdout.flush()
        sys.stderr.write(f"Review page of {store.name}. Stop with Ctrl+C.\n")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def bind(address: Address) -> socket.socket:
    """A listening socket on one address.

    Raises:
        ConfigError: the port is taken, or the address is not this computer's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{address.host}, port {address.port}: {error.strerror}",
            "Choose another port, or 0 for any free one.",
        ) from None
    listener.listen(64)
    return listener


def _configured(uvicorn: ModuleType, app: Guard, address: Address) -> Any:
    """Uvicorn's configuration, loaded: what is wrong with a certificate is told before anybody is admitted."""
    # The access log would hold the token; nothing here needs it.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"--certificate {address.certificate}: {error}", "Give a PEM file and its key."
        ) from error
    return config


def _origin(address: Address, listener: socket.socket) -> str:
    scheme = "http" if address.certificate is None else "https"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def _admit(store: LabelStore, person: str | None, role: str) -> str | None:
    if person is not None:
        return store.people.admit(person, role, actor=person)  # type: ignore[arg-type]  # the command checks it
    if not store.people.all():
        raise ConfigError(
            f"nobody is admitted to {store.name}",
            "Admit people (fedvox curate people STORE --admit NAME), or start with --as NAME.",
        )
    return None


def _uvicorn() -> ModuleType:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"the review page needs {error.name}, which is not installed",
            "Install it with: pip install '.[web]' in the source folder (else pip install 'fedvox[web]').",
        ) from error
    module: ModuleType = uvicorn
    return module
