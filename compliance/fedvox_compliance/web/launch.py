"""Start the web form: a loopback socket first, then the address with its token, then the server."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from pathlib import Path
from types import ModuleType
from xml.sax.saxutils import quoteattr

from fedvox_compliance.errors import UsageError
from fedvox_compliance.workspace import Workspace

LOOPBACK = "127.0.0.1"
OPENER_FILE = ".open-form.html"


def serve(
    folder: Path, *, host: str, port: int, language: str, max_upload_mib: int, open_browser: bool
) -> None:
    """Serve an assessment's form until interrupted.

    Args:
        folder: the assessment.
        host: must be the loopback address.
        port: 0 for a free one.
        language: of new sessions.
        max_upload_mib: the size limit of one document.
        open_browser: also open it in the default browser.

    Raises:
        UsageError: another host, a port that is taken, or the extra is missing.
    """
    uvicorn = _uvicorn()
    from fedvox_compliance.web.app import create_app
    from fedvox_compliance.web.state import FormServer

    listener = bind_loopback(host, port)
    port = int(listener.getsockname()[1])
    state = FormServer(Workspace.open(folder), language=language, max_upload=max_upload_mib * 2**20)
    address = f"http://{LOOPBACK}:{port}/?token={state.token}"
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    sys.stderr.write(
        "Open this address in a browser on this computer. Whoever has it can answer. Stop with Ctrl+C.\n"
    )
    # The access log would hold the token; nothing here needs it.
    config = uvicorn.Config(
        create_app(state, port=port), log_level="warning", access_log=False, server_header=False
    )
    opener = folder / OPENER_FILE
    try:
        if open_browser:
            _open(address, opener)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        opener.unlink(missing_ok=True)
        listener.close()


def bind_loopback(host: str, port: int) -> socket.socket:
    """A listening socket on the loopback address, and on no other.

    Raises:
        UsageError: another host, or the port is taken.
    """
    if host not in (LOOPBACK, "localhost"):
        raise UsageError(
            f"the form is served on {LOOPBACK} only, not on {host!r}",
            "Answers list a clinic's weaknesses. To share the work, use `export` and `merge`.",
        )
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"port {port}: {error.strerror}", "Choose another, or 0 for any free one.") from None
    listener.listen(64)
    return listener


def _open(address: str, opener: Path) -> None:
    """Open the browser through a file that only its owner can read: arguments of programs are seen by everybody."""
    descriptor = os.open(opener, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f'<!DOCTYPE html><meta http-equiv="refresh" content={quoteattr("0; url=" + address)}>\n')
    webbrowser.open(opener.resolve().as_uri())


def _uvicorn() -> ModuleType:
    try:
        import fastapi
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UsageError(
            f"the web form needs {error.name}, which is not installed",
            "Install it with: pip install '.[web]' in the source folder (else pip install 'fedvox[web]'); "
            "or answer on the terminal with `answer`.",
        ) from error
    del fastapi
    module: ModuleType = uvicorn
    return module
