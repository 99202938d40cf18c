"""The engine goes over to every weight version that the log announces, newest first; what it cannot read it reports and passes over,
and tries again while nothing newer comes: the store may have been away for a moment.

Consumes the weights log; waits for nothing else; unblocks the tickets that ask for a newer version. A late joiner catches up from the log.
"""

from __future__ import annotations

import asyncio
import logging
import time

from common.bus.base import Bus
from common.codec import decode
from common.errors import OtherSchema, WeightsError, WireError
from common.messages import WeightManifest
from common.pulse import Pulse
from common.weights.base import WeightStore
from producers.engines.base import Engine

log = logging.getLogger(__name__)
_SILENT_S = 10.0


class WeightsFollower:
    """Keeps one engine at the newest published version."""

    def __init__(self, *, bus: Bus, store: WeightStore, engine: Engine, pulse: Pulse, poll_s: float) -> None:
        self._bus = bus
        self._store = store
        self._engine = engine
        self._pulse = pulse
        self._poll_s = poll_s
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follows the log for ever; the newest version that cannot be read is tried again as long as nothing newer comes. A log that is
        silent for long is read whole: the entries of a server that came back empty, its clock behind, have lower names."""
        entry, unread, heard = "0", b"", time.monotonic()
        while True:
            news = await self._bus.weights_after(entry, self._poll_s)
            if news:
                entry, heard = news[-1][0], time.monotonic()
            elif time.monotonic() - heard > _SILENT_S:
                entry, heard = "0", time.monotonic()
            newest_first = [payload for _, payload in reversed(news)]
            unread = await self._go_over([*newest_first, unread] if unread else newest_first, unread)
            if not unread:
                self._pulse.set(obstacle="")

    async def news(self) -> None:
        """Waits for new weights or for `wake`, whichever comes first."""
        await self._news.wait()

    def wake(self) -> None:
        """Whoever waits looks again: one event for all, because a whole batch of tickets may wait for the same version."""
        self._news.set()
        self._news.clear()

    async def _go_over(self, newest_first: list[bytes], told: bytes) -> bytes:
        """Returns the newest version that the store may yet give, or nothing. `told`: it was reported before."""
        unread = b""
        for payload in newest_first:
            try:
                manifest = decode(payload, WeightManifest)
                assert isinstance(manifest, WeightManifest)
                if manifest.version <= self._engine.version:
                    return unread
                await self._engine.update_weights(manifest, await self._store.fetch(manifest))
            except OtherSchema:
                raise
            except (WireError, WeightsError) as error:
                if payload != told:
                    log.warning("passes over a weight version", extra={"reason": str(error)})
                    self._pulse.add(weights_refused=1)
                    self._pulse.set(obstacle=str(error))
                if isinstance(error, WeightsError):
                    unread = unread or payload
                continue
            self._pulse.add(weight_updates=1)
            self._pulse.set(term=manifest.version.term, step=manifest.version.step)
            self.wake()
            return unread
        return unread
