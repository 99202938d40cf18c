"""What a person asks of a run, on the twin in memory; and how every call reaches its server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from common.bus.base import TICKETS, DeadLetter, Revival
from common.bus.memory_server import MemoryServer
from common.errors import BusUnreachable


class OperatorCalls:
    """Calls that anybody may make."""

    def __init__(self, server: MemoryServer, *, name: str, lease_s: float = 30.0) -> None:
        self._server = server
        self._name = name
        self._lease_s = lease_s

    async def _reach(self) -> MemoryServer:
        await asyncio.sleep(0)
        if self._server.away:
            raise BusUnreachable("the server in memory is away")
        return self._server

    async def dead_letters(self) -> dict[int, DeadLetter]:
        """See Bus.dead_letters."""
        return dict((await self._reach()).dead)

    async def glance(self, topic: str, count: int) -> list[bytes]:
        """See Bus.glance."""
        entries = (await self._reach()).topics.get(topic, {})
        return [entry.payload for entry in islice(entries.values(), count)]

    async def lives(self) -> dict[int, int]:
        """See Bus.lives."""
        return dict((await self._reach()).lives)

    async def revive(self, revivals: Sequence[Revival]) -> list[int]:
        """See Bus.revive."""
        server = await self._reach()
        server.demand_room()
        revived = []
        for one in revivals:
            letter = server.dead.get(one.seq)
            if letter and letter.attempt + 1 == one.attempt:
                server.revive(one.seq, server.lives.get(one.seq, 0) + 1)
                server.add(TICKETS, one.seq, one.attempt, one.ticket, self._name)
                revived.append(one.seq)
        return revived

    async def strip(self, seqs: Sequence[int]) -> list[int]:
        """See Bus.strip."""
        server = await self._reach()
        stripped = [seq for seq in seqs if seq in server.dead]
        server.dead.update({seq: replace(server.dead[seq], payload=b"") for seq in stripped})
        return stripped

    async def purge(self, force: bool) -> list[str]:
        """See Bus.purge."""
        server = await self._reach()
        now = server.clock()
        alive = [server.learner[0]] if server.learner and server.learner[1] > now else []
        alive += sorted(name for name, (_, until) in server.reports.items() if until > now and name not in alive)
        if alive and not force:
            return alive
        server.restart()
        return []

    async def pause(self, paused: bool) -> None:
        """See Bus.pause."""
        (await self._reach()).paused = paused

    async def paused(self) -> bool:
        """See Bus.paused."""
        return (await self._reach()).paused
