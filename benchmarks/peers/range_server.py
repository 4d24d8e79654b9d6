"""A read-only S3 server over a folder: HEAD and GET with ranges, each answered after a set latency.

moto copies a whole object for every range that is asked of it: right for tests, useless for speed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web


def serve(folder: str, port: int, latency_ms: float) -> None:
    """Serves until the process is ended; every bucket name leads to `folder`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(latency_ms / 1000)
        path = Path(folder) / request.match_info["key"]
        if not path.is_file():
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        return web.FileResponse(path, chunk_size=1 << 20)

    app = web.Application()
    app.router.add_get("/{bucket}/{key:.+}", answer)  # aiohttp answers HEAD by it, too
    web.run_app(app, host="127.0.0.1", port=port, print=None)
