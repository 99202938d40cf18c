"""A worker renews what it holds in memory, and nothing else: an entry it has forgotten goes to another worker (docs/architecture.md).

`run` is a task of the worker's event loop; maths runs elsewhere, so renewal never stalls. What another worker took over is forgotten here:
its hand-off would be refused. So is what is older than `work_deadline_s`. If it is still computed, it hangs: `hung` is called, which ends
the process like any death, so that the entries become suspects. If it waited for something else (weights, its turn), it is innocent and
given back, which counts against nothing. A result that leaves has no deadline: the server takes it as soon as it can.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from common.bus.base import Bus, Lease
from common.errors import BusError

log = logging.getLogger(__name__)

Place = tuple[str, str]


class LeaseKeeper:
    """Holds the leases of one worker."""

    def __init__(
        self, bus: Bus, *, lease_s: float, work_deadline_s: float, hung: Callable[[Sequence[Lease]], None] = lambda _: None
    ) -> None:
        self._bus = bus
        self._period = lease_s / 3
        self._deadline = work_deadline_s
        self._hung = hung
        self._held: dict[Place, tuple[Lease, float]] = {}
        self._computed: set[Place] = set()
        self._leaving: set[Place] = set()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, leases: Iterable[Lease]) -> None:
        """Renews these from now on."""
        now = time.monotonic()
        for lease in leases:
            self._held[_place(lease)] = (lease, now)

    def drop(self, leases: Iterable[Lease]) -> None:
        """These are done with."""
        for lease in leases:
            self._held.pop(_place(lease), None)

    def holds(self, lease: Lease) -> bool:
        """Whether this very lease is still ours as far as we know; not one of the same entry that came later."""
        held = self._held.get(_place(lease))
        return held is not None and held[0] is lease

    @contextmanager
    def computing(self, leases: Sequence[Lease]) -> Iterator[None]:
        """While inside, these are in the hands of mathematics that may never come back."""
        self._computed.update(map(_place, leases))
        try:
            yield
        finally:
            self._computed.difference_update(map(_place, leases))

    @contextmanager
    def leaving(self, leases: Sequence[Lease]) -> Iterator[None]:
        """While inside, these may already be another worker's by our own doing; behind it they are done with."""
        self._leaving.update(map(_place, leases))
        try:
            yield
            self.drop(leases)
        finally:
            self._leaving.difference_update(map(_place, leases))

    async def run(self) -> None:
        """Waits for nothing but time; ends only by cancellation or when the bus stays away."""
        while True:
            await asyncio.sleep(self._period)
            await self._give_back_overdue()
            leases = [lease for lease, _ in self._held.values()]
            if not leases:
                continue
            kept = set(map(_place, await self._bus.renew(leases)))
            lost = [lease for lease in leases if _place(lease) not in kept | self._leaving and self.holds(lease)]
            if lost:
                log.warning("leases went to another worker", extra={"seqs": [lease.seq for lease in lost][:10], "count": len(lost)})
                self.drop(lost)

    async def _give_back_overdue(self) -> None:
        limit = time.monotonic() - self._deadline
        overdue = [lease for place, (lease, since) in self._held.items() if since < limit and place not in self._leaving]
        if hanging := [lease for lease in overdue if _place(lease) in self._computed]:
            self._hung(hanging)
        if overdue:
            log.warning("gives back what it could not begin by bus.work_deadline_s", extra={"seqs": [lease.seq for lease in overdue][:10]})
            self.drop(overdue)
            await self._bus.release([lease for lease in overdue if lease not in hanging])

    async def release_all(self) -> None:
        """Gives everything back so that others get it at once; a server that is away leaves it to the leases' end."""
        leases = [lease for lease, _ in self._held.values()]
        self._held.clear()
        if leases:
            with suppress(BusError):
                await self._bus.release(leases)


def _place(lease: Lease) -> Place:
    return lease.topic, lease.entry


def quarantine_size(deliveries: int, full: int) -> int:
    """How many entries that were delivered `deliveries` times may be worked together: `full`, then an eighth, … down to 1.

    A worker's death makes suspects of all it held; the innocent ones get through in small groups, and the guilty one ends up alone, where
    its failures count.
    """
    return max(1, full >> 3 * max(0, deliveries - 1))
