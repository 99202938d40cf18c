"""The dashboard's server in the test's own loop, on a port of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from deploy.dashboard.app import application


@asynccontextmanager
async def served(source: Any, token: str = "") -> AsyncIterator[str]:
    """Its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = application(source, token=token, hosts=("*",) if token else ("localhost", "127.0.0.1"), poll_s=0.1)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", loop="asyncio", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        async with asyncio.timeout(60):
            while not server.started:
                assert not task.done(), task
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        await task
        listener.close()
