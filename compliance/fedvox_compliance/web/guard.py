"""The door of the web form: it opens for this computer's own browser, at the printed address, and nothing else.

A page on the internet can make a browser send requests to 127.0.0.1. What stops it:

    Host       must be exactly 127.0.0.1:PORT, so a name that was re-bound to 127.0.0.1 does not get through
    Origin     of every POST must be this server's own; other sites and other ports cannot write
    session    a cookie that only the printed address sets, SameSite=Strict and HttpOnly; other sites cannot read
    CSRF       a secret in each form, compared in `state.py`
    CSP        no script but our own file, no frame, nothing fetched from elsewhere
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Not `no-referrer`: that makes browsers send `Origin: null` with forms, and the origin is what we check.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """Wraps the application.

    Args:
        app: what is behind the door.
        port: where the server listens.
        max_body: bytes that a request may have.
    """

    def __init__(self, app: App, *, port: int, max_body: int) -> None:
        self._app = app
        self._host = f"127.0.0.1:{port}".encode()
        self._origin = b"http://" + self._host
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = (403, "only HTTP") if scope["type"] != "http" else self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        exchange = _Exchange(receive, send, self._max_body)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            if not exchange.cut_off:
                raise

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        if headers.get(b"host") != [self._host]:
            return 403, "this server answers only at its own address"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST"
        if scope["method"] == "POST":
            return self._refusal_of_post(headers)
        return None

    def _refusal_of_post(self, headers: dict[bytes, list[bytes]]) -> tuple[int, str] | None:
        if headers.get(b"origin") != [self._origin]:
            return 403, "forms are taken only from this server's own pages"
        if headers.get(b"sec-fetch-site", [b"same-origin"]) != [b"same-origin"]:
            return 403, "forms are taken only from this server's own pages"
        declared = headers.get(b"content-length", [b"0"])[0]
        if not declared.isdigit() or int(declared) > self._max_body:
            return 413, f"more than {self._max_body} bytes"
        return None


class _Exchange:
    """One request and its answer: bytes are counted as they come, since chunked bodies declare no length."""

    def __init__(self, receive: Receive, send: Send, max_body: int) -> None:
        self._receive, self._send, self._max_body = receive, send, max_body
        self._total = 0
        self.cut_off = False

    async def receive(self) -> Message:
        """The next part of the request; past the limit, the answer 413 and an end."""
        message = await self._receive()
        self._total += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if self._total <= self._max_body:
            return message
        if not self.cut_off:
            self.cut_off = True
            await _answer(self._send, 413, f"more than {self._max_body} bytes")
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """A part of the answer, with the protective headers; nothing more once the request was cut off."""
        if not self.cut_off:
            await self._send(_with_headers(message) if message["type"] == "http.response.start" else message)


def _with_headers(message: Message) -> Message:
    given = {name.lower() for name, _ in message["headers"]}
    added = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in given]
    return {**message, "headers": [*message["headers"], *added]}


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode("utf-8") + b"\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send(_with_headers({"type": "http.response.start", "status": status, "headers": headers}))
    await send({"type": "http.response.body", "body": body})
