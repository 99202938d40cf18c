"""The way of one role to the server, a proxy on loopback: it can be cut, be slow, or lose the reply of a call that the server did.

A client of the product has one call at a time on a connection, so whatever the server says after a request answers that request.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "common" / "bus" / "scripts"
_REQUEST = re.compile(rb"\*\d+\r\n\$\d+\r\n([A-Z]+)\r\n\$\d+\r\n([^\r]*)\r\n")


def calls() -> dict[str, str]:
    """Digest of a script, prelude included, -> its name."""
    prelude = (SCRIPTS / "prelude.lua").read_text()
    texts = {path.stem: prelude + path.read_text() for path in SCRIPTS.glob("*.lua") if path.stem != "prelude"}
    return {hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): name for name, text in texts.items()}


class Line:
    """Listens on `port`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._calls = calls()
        self._open: set[asyncio.StreamWriter] = set()
        self._whole = asyncio.Event()
        self._whole.set()
        self.port = 0
        self.delay_s = 0.0
        self.lose: Counter[str] = Counter()  # call -> how many of its replies are still to be lost
        self.lost: Counter[str] = Counter()

    @classmethod
    @asynccontextmanager
    async def to(cls, target: int) -> AsyncIterator[Line]:
        line = cls(target)
        server = await asyncio.start_server(line._serve, "127.0.0.1", 0)
        line.port = server.sockets[0].getsockname()[1]
        try:
            yield line
        finally:
            server.close()
            line._hang_up()

    def cut(self, *, silently: bool) -> None:
        """Nothing passes any more; `silently`: connections stay open and are not answered."""
        self._whole.clear()
        if not silently:
            self._hang_up()

    def mend(self) -> None:
        self._whole.set()

    def _hang_up(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        server_writer = None
        try:
            await self._whole.wait()
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await self._talk(reader, writer, server_reader, server_writer)
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            for end in (writer, server_writer):
                if end is not None:
                    end.transport.abort()

    async def _talk(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        asked = [""]
        ways = [
            asyncio.create_task(self._ask(reader, server_writer, asked)),
            asyncio.create_task(self._answer(server_reader, writer, asked)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
                with suppress(asyncio.CancelledError, OSError):
                    await way

    async def _ask(self, reader: asyncio.StreamReader, server_writer: asyncio.StreamWriter, asked: list[str]) -> None:
        while chunk := await reader.read(1 << 18):
            if found := _REQUEST.match(chunk):
                name = found[1].decode()
                asked[0] = self._calls.get(found[2].decode(errors="replace"), name) if name == "EVALSHA" else name
            await self._carry(chunk, server_writer)

    async def _answer(self, server_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[str]) -> None:
        while chunk := await server_reader.read(1 << 18):
            name = asked[0]
            if self.lose[name] > 0 and not chunk.startswith(b"-"):
                self.lose[name] -= 1
                self.lost[name] += 1
                return
            await self._carry(chunk, writer)

    async def _carry(self, chunk: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._whole.wait()
        writer.write(chunk)
        await writer.drain()
