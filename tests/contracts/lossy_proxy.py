"""A TCP proxy that passes everything on, but swallows replies when told to and cuts the line instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LossyProxy:
    """Listens on `port`; `lose` = how many replies to swallow, once `spare` others have passed."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.lose = self.spare = 0
        self.port = 0
        self._lines: set[asyncio.Task[None]] = set()

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
            for line in proxy._lines:
                line.cancel()
            await asyncio.gather(*proxy._lines, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line
        self._lines.add(line)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        asking = asyncio.create_task(self._pass(reader, server_writer, lossy=False))
        answering = asyncio.create_task(self._pass(server_reader, writer, lossy=True))
        try:
            await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (asking, answering):
                task.cancel()
            for end in (writer, server_writer):
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lossy: bool) -> None:
        while chunk := await reader.read(1 << 16):
            if lossy and self.spare:
                self.spare -= 1
            elif lossy and self.lose:
                self.lose -= 1
                return
            writer.write(chunk)
