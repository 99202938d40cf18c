"""What a person asks of a run: pause it, look through its dead letters, give them another life. No term: a learner need not be there."""

from __future__ import annotations

from collections.abc import Sequence

from common.bus.base import DeadLetter, Revival
from common.bus.redis_calls import MOST_ENTRIES, RunCalls, pieces

_PAGE = 16
"""Letters asked for at a time: their number has no bound, but an answer of the server has one, and nobody else waits for long."""


class OperatorCalls(RunCalls):
    """Calls that anybody may make."""

    async def dead_letters(self) -> dict[int, DeadLetter]:
        """See Bus.dead_letters."""
        letters: dict[int, DeadLetter] = {}
        cursor = b"0"
        while True:
            cursor, rows = await self._client.command("HSCAN", self._key("dead"), cursor, "COUNT", _PAGE)
            letters |= {int(seq): _dead_letter(int(seq), text) for seq, text in zip(rows[::2], rows[1::2], strict=True)}
            if cursor == b"0":
                return letters

    async def glance(self, topic: str, count: int) -> list[bytes]:
        """See Bus.glance."""
        entries = await self._client.command("XRANGE", self._key(topic), "-", "+", "COUNT", count)
        return [dict(zip(fields[::2], fields[1::2], strict=True))[b"payload"] for _, fields in entries]

    async def lives(self) -> dict[int, int]:
        """See Bus.lives."""
        return lives_of(await self._client.command("HGETALL", self._key("lives")))

    async def revive(self, revivals: Sequence[Revival]) -> list[int]:
        """See Bus.revive."""
        revived: list[int] = []
        for some in pieces(revivals, lambda one: len(one.ticket)):
            arguments = [a for one in some for a in (one.seq, one.attempt, one.ticket)]
            revived += await self._script("revive", self._number(), *arguments)
        return revived

    async def strip(self, seqs: Sequence[int]) -> list[int]:
        """See Bus.strip."""
        stripped: list[int] = []
        for begin in range(0, len(seqs), MOST_ENTRIES):
            stripped += await self._script("strip", *seqs[begin : begin + MOST_ENTRIES])
        return stripped

    async def purge(self, force: bool) -> list[str]:
        """See Bus.purge."""
        return [name.decode() for name in await self._script("purge", int(force))]

    async def pause(self, paused: bool) -> None:
        """See Bus.pause."""
        await self._client.command("HSET", self._key("state"), "paused", int(paused))

    async def paused(self) -> bool:
        """See Bus.paused."""
        return bool(await self._client.command("HGET", self._key("state"), "paused") == b"1")


def lives_of(rows: Sequence[bytes]) -> dict[int, int]:
    """From seq, life, seq, life, …"""
    return {int(seq): int(life) for seq, life in zip(rows[::2], rows[1::2], strict=True)}


def _dead_letter(seq: int, text: bytes) -> DeadLetter:
    attempt, size, rest = text.split(b" ", 2)
    return DeadLetter(seq, int(attempt), rest[: int(size)].decode(errors="replace"), rest[int(size) :])
