"""A TCP proxy that passes everything on, but swallows the next replies when told to and cuts the line instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LossyProxy:
    """Listens on `port`; `lose` = how many replies to swallow from now on."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.lose = 0
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def to(cls, target: int) -> AsyncIterator[LossyProxy]:
        proxy = cls(target)
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        asking = asyncio.create_task(self._pass(reader, server_writer, lossy=False))
        answering = asyncio.create_task(self._pass(server_reader, writer, lossy=True))
        await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
        for task in (asking, answering):
            task.cancel()
        for end in (writer, server_writer):
            end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lossy: bool) -> None:
        while chunk := await reader.read(1 << 16):
            if lossy and self.lose:
                self.lose -= 1
                return
            writer.write(chunk)
