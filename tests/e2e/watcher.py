"""What an observer of the example's run reads, without a process of its own for every look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from common.bus import connect_url
from common.bus.base import Bus
from deploy.bottleneck import bottleneck
from deploy.snapshot import Snapshot, take

T = TypeVar("T")


class Watcher:
    """Of the run on the server at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _ask(self, question: Callable[[Bus], Awaitable[T]]) -> T:
        async def asked() -> T:
            async with connect_url(self._url, run="arithmetic", name="watcher", lease_s=9.0, outage_timeout_s=60.0) as bus:
                return await question(bus)

        return asyncio.run(asked())

    def snapshot(self) -> Snapshot:
        return self._ask(take)

    def line(self, seconds: float) -> str:
        """Who waits for whom, over so much time."""
        before = self.snapshot()
        time.sleep(seconds)
        found = bottleneck(before, self.snapshot())
        return found.line if found else ""
