"""A worker renews what it holds in memory, and nothing else: an entry it has forgotten goes to another worker (design §4).

`run` is a task of the worker's event loop; maths runs elsewhere, so renewal never stalls. What another worker took over, or what is older
than `work_deadline_s`, is forgotten here: its hand-off would be refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from common.bus.base import Bus, Lease
from common.errors import BusError

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Holds the leases of one worker."""

    def __init__(self, bus: Bus, *, lease_s: float, work_deadline_s: float) -> None:
        self._bus = bus
        self._period = lease_s / 3
        self._deadline = work_deadline_s
        self._held: dict[tuple[str, str], tuple[Lease, float]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, leases: Iterable[Lease]) -> None:
        """Renews these from now on."""
        now = time.monotonic()
        for lease in leases:
            self._held[lease.topic, lease.entry] = (lease, now)

    def drop(self, leases: Iterable[Lease]) -> None:
        """These are done with."""
        for lease in leases:
            self._held.pop((lease.topic, lease.entry), None)

    def holds(self, lease: Lease) -> bool:
        """Whether the lease is still ours as far as we know."""
        return (lease.topic, lease.entry) in self._held

    async def run(self) -> None:
        """Waits for nothing but time; ends only by cancellation or when the bus stays away."""
        while True:
            await asyncio.sleep(self._period)
            self._forget_overdue()
            leases = [lease for lease, _ in self._held.values()]
            if not leases:
                continue
            kept = {(lease.topic, lease.entry) for lease in await self._bus.renew(leases)}
            lost = [lease for lease in leases if (lease.topic, lease.entry) not in kept and self.holds(lease)]
            if lost:
                log.warning("leases went to another worker", extra={"seqs": [lease.seq for lease in lost][:10], "count": len(lost)})
                self.drop(lost)

    def _forget_overdue(self) -> None:
        limit = time.monotonic() - self._deadline
        overdue = [lease for lease, since in self._held.values() if since < limit]
        if overdue:
            log.warning("abandons work past bus.work_deadline_s", extra={"seqs": [lease.seq for lease in overdue][:10]})
            self.drop(overdue)

    async def release_all(self) -> None:
        """Gives everything back so that others get it at once; a server that is away leaves it to the leases' end."""
        leases = [lease for lease, _ in self._held.values()]
        self._held.clear()
        if leases:
            with suppress(BusError):
                await self._bus.release(leases)


def quarantine_size(deliveries: int, full: int) -> int:
    """How many entries that were delivered `deliveries` times may be worked together: `full`, then an eighth, … down to 1.

    A worker's death makes suspects of all it held; the innocent ones get through in small groups, and the guilty one ends up alone, where
    its failures count.
    """
    return max(1, full >> 3 * max(0, deliveries - 1))
