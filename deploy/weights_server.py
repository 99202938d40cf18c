"""`reflux weights serve DIR`: a directory of weight versions over HTTP, for producers that do not share its file system.

Guarantees: read-only; of the directory only whole versions, and of these only the plain files, are shown, no links; with a token nobody
reads anything without it. Ranges are served, so a broken download goes on where it broke.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from common.errors import ConfigError
from common.weights.http import LIST, token_in
from common.weights.store import MANIFEST_FILE, VERSION

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def application(directory: Path, token: str) -> web.Application:
    """Ready to be served."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        said = request.headers.get("Authorization", "")
        if token and not hmac.compare_digest(said.encode(errors="surrogateescape"), f"Bearer {token}".encode()):
            return web.Response(status=401, text="the token is missing or wrong: weights.token_file\n")
        return await handler(request)

    async def versions(_request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(_versions, directory))

    async def file(request: web.Request) -> web.StreamResponse:
        path = _inside(directory, request.match_info["version"], request.match_info["file"])
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path)

    app = web.Application(middlewares=[guard])
    app.router.add_get(f"/{LIST}", versions)
    app.router.add_get("/{version}/{file}", file)
    return app


def _versions(directory: Path) -> list[str]:
    return sorted(path.parent.name for path in directory.glob(f"term*/{MANIFEST_FILE}") if VERSION.fullmatch(path.parent.name))


def _inside(directory: Path, version: str, file: str) -> Path | None:
    path = directory / version / file
    if not VERSION.fullmatch(version) or not _FILE.fullmatch(file) or path.parent.is_symlink() or path.is_symlink() or not path.is_file():
        return None
    return path


@asynccontextmanager
async def listening(directory: Path, *, token: str, host: str, port: int) -> AsyncIterator[str]:
    """The address, while it serves."""
    runner = web.AppRunner(application(directory, token), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, UnicodeError) as error:  # a name may be none
            raise ConfigError(
                f"cannot listen on {host}:{port} ({getattr(error, 'strerror', '') or error}): name another --host or --port"
            ) from None
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def serve(directory: Path, *, token_file: Path | None, host: str, port: int) -> int:
    """Until SIGINT or SIGTERM. Raises ConfigError."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory: name the learner's weights.dir (runs/NAME/weights unless it is set)")
    token = token_in(token_file)
    if not token and host not in _LOOPBACK:
        print(
            f"reflux: {host} is reachable from elsewhere and no --token-file is given: whoever reaches it reads the weights",
            file=sys.stderr,
        )
    asyncio.run(_serve(directory, token, host, port))
    return 0


async def _serve(directory: Path, token: str, host: str, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with listening(directory, token=token, host=host, port=port) as url:
        print(f"serves {directory} for reading: weights.url = {url!r}", flush=True)
        await stopping.wait()
