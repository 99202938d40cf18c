"""The bus of a run, looked at again and again, and found again when it comes back.

Guarantees: only reads; a run that stops or starts again is followed without a restart of the dashboard; what cannot be reached is
said, never guessed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any  # JSON values

from common.bus.base import Bus
from common.errors import RefluxError
from deploy.dashboard.look import Look
from deploy.report.record import MOST_LETTERS
from deploy.snapshot import Snapshot
from deploy.watch import Watch

_AGAIN_S = 2.0
_GONE_AFTER_S = 6.0


class Live:
    """`run` is a task; what it saw may be read at any time. `away` says why there is nothing to see."""

    def __init__(
        self,
        reach: Callable[[], AbstractAsyncContextManager[Bus]],
        *,
        period_s: float,
        also: Callable[[Bus], Awaitable[None]] | None = None,
    ) -> None:
        self._reach = reach
        self._also = also
        self._period = period_s
        self._look = Look()
        self._answered = 0.0
        self.away = "looking for the run"
        self.dead: dict[str, Any] | None = None

    @property
    def document(self) -> dict[str, Any] | None:
        """None while the run's bus is not there."""
        return None if self.away else self._look.document

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                async with self._reach() as bus:
                    await self.follow(bus)
            except RefluxError as error:
                self.away = str(error)
            await asyncio.sleep(_AGAIN_S)

    async def follow(self, bus: Bus) -> None:
        """Until it has been silent for some time."""
        watch = Watch(bus=bus, period_s=self._period, show=self._show)
        self._answered = time.monotonic()
        while time.monotonic() - self._answered < _GONE_AFTER_S:
            await watch.look()
            await self._read_letters(bus, watch.latest)
            if self._also is not None:
                await self._also(bus)
            await asyncio.sleep(self._period)
        self.away = "its server does not answer"

    def _show(self, before: Snapshot, after: Snapshot) -> None:
        self._look.show(before, after)
        if after.state is not None:
            self._answered, self.away = time.monotonic(), ""

    async def _read_letters(self, bus: Bus, seen: Snapshot) -> None:
        """Only where there are others than before: letters carry their samples."""
        count = seen.state.dead if seen.state else None
        if count is not None and (self.dead is None or self.dead["count"] != count):
            letters = await bus.dead_letters() if count else {}
            chosen = [letters[seq] for seq in sorted(letters)[:MOST_LETTERS]]
            shown = [{"seq": letter.seq, "attempt": letter.attempt, "reason": letter.reason} for letter in chosen]
            self.dead = {"count": count, "letters": shown}
