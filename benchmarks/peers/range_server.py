"""A read-only S3 server over a folder: HEAD and GET with ranges, each answered after a set latency.

moto copies a whole object for every range that is asked of it: right for tests, useless for speed. Without a limit the
loopback moves about 1 GB/s on each connection, which no object store does; with one, a connection is as slow as theirs.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from aiohttp import web

_PIECE_BYTES = 256 << 10


def serve(folder: str, port: int, latency_ms: float, connection_mb_s: float = 0.0) -> None:
    """Serves until the process is ended; every bucket name leads to `folder`.

    Args:
        folder: that holds the objects.
        port: to listen on.
        latency_ms: before the first byte of each answer.
        connection_mb_s: 10⁶ bytes a second on each connection; 0 for no limit.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(latency_ms / 1000)
        path = Path(folder) / request.match_info["key"]
        if not path.is_file():
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        if connection_mb_s and request.method == "GET":
            return await _paced(request, path, connection_mb_s)
        return web.FileResponse(path, chunk_size=1 << 20)

    app = web.Application()
    app.router.add_get("/{bucket}/{key:.+}", answer)  # aiohttp answers HEAD by it, too
    web.run_app(app, host="127.0.0.1", port=port, print=None)


async def _paced(request: web.Request, path: Path, connection_mb_s: float) -> web.StreamResponse:
    size = path.stat().st_size
    asked = request.http_range
    begin, end, _ = slice(asked.start, asked.stop).indices(size)
    response = web.StreamResponse(status=206 if "Range" in request.headers else 200)
    response.content_length = end - begin
    if response.status == 206:
        response.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    await response.prepare(request)
    started = time.monotonic()
    with path.open("rb") as file:
        file.seek(begin)
        for offset in range(begin, end, _PIECE_BYTES):
            await response.write(file.read(min(_PIECE_BYTES, end - offset)))
            due = (offset - begin + _PIECE_BYTES) / (connection_mb_s * 1e6)
            await asyncio.sleep(max(0.0, started + due - time.monotonic()))
    await response.write_eof()
    return response
