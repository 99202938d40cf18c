"""The server of a run: the embedded one, which is started again if it dies, or somebody else's, which is left alone.

Guarantee: a restarted server has the old port and password, so that the roles find it again; its data may be gone, which the learner sees.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import psutil

from common.bus.address import ADDRESS_FILE, write_address
from common.bus.embedded import EmbeddedServer
from common.config import RunConfig
from common.errors import BusError

_POLL_S = 0.1
_SHORT_LIFE_S = 10.0


class Served(Protocol):
    """What the supervisor needs to know of it."""

    @property
    def own(self) -> bool:
        """Whether nobody else can be connected to it."""

    async def keep(self, progress: Callable[[], object]) -> None:
        """A task for as long as the run lasts. `progress` is any number that changes when the run gets on."""

    def cpu_s(self) -> float:
        """What it has cost so far."""


class _Embedded:
    own = True

    def __init__(self, server: EmbeddedServer, config: RunConfig, say: Callable[[str], None]) -> None:
        self._server = server
        self._config = config
        self._say = say
        self._cpu_s = 0.0  # of those that died
        self._cpu_now_s = 0.0

    async def keep(self, progress: Callable[[], object]) -> None:
        """Starts it again on its port. Raises BusError when it keeps dying and the run does not get on in between."""
        short_lives, born, seen = 0, time.monotonic(), progress()
        while True:
            await asyncio.sleep(_POLL_S)
            if self._server.alive:
                self.cpu_s()
                continue
            stuck = time.monotonic() - born < _SHORT_LIFE_S and progress() == seen
            short_lives, seen = short_lives + 1 if stuck else 0, progress()
            if short_lives > self._config.service.restart_budget:
                raise BusError(f"the embedded server keeps dying: see {self._config.directory / 'bus' / 'server.log'}")
            self._say("the embedded server died and is started again")
            self._cpu_s, self._cpu_now_s = self._cpu_s + self._cpu_now_s, 0.0
            born = time.monotonic()
            with suppress(BusError):  # one that dies before it answers is one more death
                await self._server.launch()
                write_address(self._config.directory / ADDRESS_FILE, self._server.address)

    def cpu_s(self) -> float:
        """Read while it lives: a dead process takes its times along."""
        with suppress(psutil.Error):
            times = psutil.Process(self._server.pid).cpu_times()
            self._cpu_now_s = max(self._cpu_now_s, times.user + times.system)
        return self._cpu_s + self._cpu_now_s


class _Foreign:
    own = False

    async def keep(self, progress: Callable[[], object]) -> None:
        """Nothing to do."""

    def cpu_s(self) -> float:
        """Not ours."""
        return 0.0


@asynccontextmanager
async def served(config: RunConfig, say: Callable[[str], None]) -> AsyncIterator[Served]:
    """The server of this run while inside."""
    if config.bus.url:
        yield _Foreign()
        return
    memory, entry = 2 * config.bus.max_bytes, config.largest_entry_bytes
    async with EmbeddedServer.start(config.directory, run=config.run.name, max_bytes=memory, largest_entry=entry) as server:
        yield _Embedded(server, config, say)
