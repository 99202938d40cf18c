"""An answer of the server that is longer than anything a run can ask for ends its connection, before it fills this process's memory."""

from __future__ import annotations

from typing import Any

from redis.asyncio import connection

from common.errors import BusError


class AnswerTooLong(BusError):
    """More bytes than the limit came for one call; the connection is of no more use."""


class _Metered:
    """A stream that gives at most `room` bytes until it is filled up again."""

    def __init__(self, stream: Any, room: int) -> None:  # Any: asyncio's reader, as redis-py's parsers use it
        self._stream = stream
        self._room = room
        self._left = room

    def refill(self) -> None:
        self._left = self._room

    async def read(self, count: int) -> bytes:
        return self._took(await self._stream.read(count))

    async def readline(self) -> bytes:
        return self._took(await self._stream.readline())

    async def readexactly(self, count: int) -> bytes:
        self._must_have(count)
        return self._took(await self._stream.readexactly(count))

    def _took(self, piece: bytes) -> bytes:
        self._must_have(len(piece))
        self._left -= len(piece)
        return piece

    def _must_have(self, count: int) -> None:
        if count > self._left:
            raise AnswerTooLong(
                f"the server answered one call with more than {self._room} bytes: something is stored there that this run cannot have "
                f"made; see who may write to it (docs/security.md)"
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def parser_with(limit: int) -> type[Any]:
    """redis-py's parser, which gives up an answer of more than `limit` bytes."""

    base: Any = connection.DefaultParser

    class LimitedParser(base):  # type: ignore[misc]
        _stream: Any

        def on_connect(self, owner: Any) -> None:
            super().on_connect(owner)
            self._stream = _Metered(self._stream, limit)

        async def read_response(self, *arguments: Any, **options: Any) -> Any:
            if isinstance(self._stream, _Metered):
                self._stream.refill()
            return await super().read_response(*arguments, **options)

    return LimitedParser
