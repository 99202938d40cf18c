"""Looks at the run again and again, tells what it sees, and knows whether the run gets on. A server that does not answer is a sight too."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from common.bus.base import Bus
from common.errors import BusError, WireError
from deploy.snapshot import Snapshot, take

_LOOK_S = 5.0
_SPAN_S = 5.0
"""Rates are over this long."""

Show = Callable[[Snapshot, Snapshot], None]


class Watch:
    """`run` is a task; `latest` and `progress` may be read at any time."""

    def __init__(self, *, bus: Bus, period_s: float, show: Show) -> None:
        self._bus = bus
        self._period = period_s
        self._show = show
        self._seen: deque[Snapshot] = deque([Snapshot(time.monotonic())])
        self._handed: dict[str, float] = {}  # by worker, as it last reported
        self._handed_off = 0.0

    @property
    def latest(self) -> Snapshot:
        """The last look."""
        return self._seen[-1]

    @property
    def looks(self) -> tuple[Snapshot, Snapshot]:
        """The oldest that is kept, up to `_SPAN_S` before the last, and the last."""
        return self._seen[0], self._seen[-1]

    @property
    def progress(self) -> tuple[float, ...]:
        """Changes whenever a sample or an answer was admitted, handed off, applied or given up."""
        states = [snapshot.state for snapshot in self._seen if snapshot.state]
        places = (states[-1].applied, states[-1].cursor, states[-1].dead) if states else (0, 0, 0)
        return (*places, self._handed_off)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._period)

    async def look(self) -> None:
        """Once."""
        try:
            async with asyncio.timeout(_LOOK_S):
                now = await take(self._bus)
        except (BusError, WireError, TimeoutError):
            now = Snapshot(time.monotonic(), self.latest.reports)
        while len(self._seen) > 1 and now.at - self._seen[1].at >= _SPAN_S:
            self._seen.popleft()
        self._seen.append(now)
        self._count(now)
        self._show(self._seen[0], now)

    def _count(self, now: Snapshot) -> None:
        """A worker that was started again under its name counts from nothing."""
        for report in [*now.of("producer"), *now.of("scorer")]:
            counters = report.counters
            handed = counters.get("samples", 0.0) + counters.get("evaluated", 0.0) - counters.get("refused", 0.0)
            before = self._handed.get(report.name, 0.0)
            self._handed_off += handed - before if handed >= before else handed
            self._handed[report.name] = handed
