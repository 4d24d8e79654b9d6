"""The door of the review page: it opens for browsers at the server's own address, and nothing else.

    Host       must be exactly the address that is served, so a name that was re-bound to it does not get through
    Origin     of every POST must be this server's own; other sites and other ports cannot write
    length     of every POST must be announced, and is bounded
    CSP        no script but our own files, no frame, nothing fetched from elsewhere

Sessions (a cookie, SameSite=Strict and HttpOnly) and the secret that every POST carries are in `sessions.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FORM_BYTES = 64 << 10
"""Of a request that carries no mask."""

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
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """Wraps the application.

    Args:
        app: what is behind the door.
        origin: the served address, such as `http://127.0.0.1:8080`.
        max_upload: bytes that an edited mask may have; other requests are short.
    """

    def __init__(self, app: App, *, origin: str, max_upload: int) -> None:
        self._app = app
        self._origin = origin.encode()
        self._host = origin.partition("://")[2].encode()
        self._max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = (403, "only HTTP") if scope["type"] != "http" else self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return

        async def send_guarded(message: Message) -> None:
            await send(_with_headers(message) if message["type"] == "http.response.start" else message)

        await self._app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        if headers.get(b"host") != [self._host]:
            return 403, "this server answers only at its own address"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST"
        if scope["method"] == "POST":
            limit = self._max_upload if scope["path"].endswith("/edited") else FORM_BYTES
            return self._refusal_of_post(headers, limit)
        return None

    def _refusal_of_post(self, headers: dict[bytes, list[bytes]], limit: int) -> tuple[int, str] | None:
        if headers.get(b"origin") != [self._origin]:
            return 403, "decisions are taken only from this server's own page"
        if headers.get(b"sec-fetch-site", [b"same-origin"]) != [b"same-origin"]:
            return 403, "decisions are taken only from this server's own page"
        # The server below holds a body to its announced length, so the announcement is all that must be checked.
        announced = headers.get(b"content-length", [b""])
        if len(announced) != 1 or not announced[0].isdigit():
            return 411, "the length of the request must be announced"
        if int(announced[0]) > limit:
            return 413, f"more than {limit} bytes"
        return None


def _with_headers(message: Message) -> Message:
    given = {name.lower() for name, _ in message["headers"]}
    added = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in given]
    return {**message, "headers": [*message["headers"], *added]}


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode() + b"\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send(_with_headers({"type": "http.response.start", "status": status, "headers": headers}))
    await send({"type": "http.response.body", "body": body})
