"""The learner's side of the ledger: one lock under which samples are taken in, journaled, settled, admitted and reconciled.

Guarantees: a batch's record is durable before it is settled, and both before its optimizer step begins (P2, docs/architecture.md);
admission never exceeds the window (P3); a changed incarnation of the bus, or a cursor that is not ours, is reconciled before anything
else is admitted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.bus.base import SCORED, Bus, BusState
from common.codec import encode
from common.config.sections import LearnerSection
from common.errors import BusFull, DiskFull
from common.leases import LeaseKeeper
from common.messages import ScoredRollout, StepRecord, Version
from common.patience import until_mended
from common.pulse import Pulse
from learner.batch import Held, form, record_of
from learner.deaths import hear_of_deaths
from learner.feeder import PromptSource, Window
from learner.holding import Holding
from learner.journal import Journal
from learner.line import Line
from learner.publish import Publisher
from learner.reconcile import reconcile

_LEASE_WAIT_S = 1.0
_WATCH_S = 1.0
_ADMIT_CHUNK = 512
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch whose record is durable and settled; `line` is the line with it, as a checkpoint keeps it."""

    record: StepRecord
    scored: Sequence[ScoredRollout]
    line: Mapping[str, Any]


class Ledger:
    """Owns the line, and the lock under which it changes."""

    def __init__(
        self,
        *,
        bus: Bus,
        keeper: LeaseKeeper,
        pulse: Pulse,
        line: Line,
        journal: Journal,
        prompts: PromptSource,
        publisher: Publisher,
        section: LearnerSection,
        window: Window,
        keep_manifests: int,
    ) -> None:
        self.line = line
        self.blocked = ""
        self.state: BusState | None = None
        self._bus = bus
        self._keeper = keeper
        self._pulse = pulse
        self._journal = journal
        self._prompts = prompts
        self._publisher = publisher
        self._section = section
        self._window = window
        self._keep_manifests = keep_manifests
        self._holding = Holding(bus=bus, keeper=keeper, pulse=pulse, line=line)
        self._lock = asyncio.Lock()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._paused = False  # as of the last look; a pause takes hold within a second
        self._incarnation = ""
        self._generation = 0
        self._next_version = line.version
        # strict order may need any of the samples in the window; otherwise the next two batches are enough
        self._most = section.batch_size * (section.max_staleness + 2 if section.straggler == "wait" else 2)

    @property
    def in_flight(self) -> int:
        """Samples admitted and neither applied nor dead, as far as the line knows."""
        return self.line.cursor - self.line.applied - len(self.line.dead)

    # consumes `scored`; waits for entries and for room; unblocks `prepare` ------------------------------------------------
    async def intake(self) -> None:
        """Leases what is scored, for ever."""
        while True:
            room = self._most - len(self._holding.held)
            if room <= 0 and self._section.straggler != "wait":
                self._taken.clear()
                await self._taken.wait()
                continue
            generation = self._generation
            leases = await self._bus.lease([SCORED], max(room, self._section.batch_size), _LEASE_WAIT_S)
            if not leases:
                continue
            async with self._lock:
                if generation == self._generation:
                    await self._holding.take_in(leases)
                else:  # leased from a server that is no more
                    await self._bus.release(leases)
            self._arrived.set()

    # consumes what is held; waits for a full batch; produces a durable, settled record ---------------------------------------
    async def prepare(self) -> Prepared:
        """The batch of the line's next step, journaled and settled."""
        section = self._section
        while True:
            self._arrived.clear()
            async with self._lock:
                self._holding.drop_lost()
                formed = form(
                    self._holding.held,
                    self.line,
                    size=section.batch_size,
                    max_staleness=section.max_staleness,
                    straggler=section.straggler,
                )
                if formed.again:
                    await self._holding.sample_again(formed.again, self._next_version, section.max_attempts)
                if formed.batch:
                    return await self._commit(formed.batch)
            self._taken.set()  # what was lost or is sampled again has left room
            await self._arrived.wait()

    async def _commit(self, batch: Sequence[Held]) -> Prepared:
        with self._pulse.cpu("journal"):
            record = record_of(batch, self.line, self._section.max_staleness)
        await until_mended(self._pulse, "disk", lambda: self._journal.append(record), DiskFull)
        self.line.apply(record)
        self._holding.remove(batch)
        self._taken.set()
        leases = [one.lease for one in batch]
        with self._keeper.leaving(leases):
            await self._bus.settle(record.term, leases)
        return Prepared(record, [one.scored for one in batch], self.line.to_json())

    # consumes the bus's ledger; waits for time; produces tickets ------------------------------------------------------------
    async def watch(self) -> None:
        """Keeps the window full between publications too: the dead are replaced, a pause ends, a lost server is noticed."""
        while True:
            self._paused = await self._bus.paused()
            await self.top_up()
            await asyncio.sleep(_WATCH_S)

    async def top_up(self) -> None:
        """Admits what the window has room for."""
        async with self._lock:
            state = await self._bus.state()
            if state.incarnation != self._incarnation:
                await self._reconcile()
                state = await self._bus.state()
            self.state = state
            await self._hear_of_deaths(state)
            published = self._publisher.published
            self.blocked = self._window.blocked(state, paused=self._paused)
            self._pulse.set(blocked=self.blocked, **_gauges(state))
            if published is None or self.blocked:
                return
            room = self._window.room(published.step, self.line.applied, state)
            if room > 0:
                await self._admit(room, published)

    async def _hear_of_deaths(self, state: BusState) -> None:
        """Strict order must not wait for the dead, and a checkpoint keeps them."""
        if state.dead > len(self.line.dead):
            await hear_of_deaths(self._bus, self.line)
            await self._holding.give_up_dead()
            self._arrived.set()

    async def _admit(self, count: int, version: Version) -> None:
        for start in range(0, count, _ADMIT_CHUNK):
            first = self.line.cursor
            seqs = range(first, first + min(_ADMIT_CHUNK, count - start))
            with self._pulse.cpu("codec"):
                tickets = [(seq, encode(self._prompts.ticket(seq, 0, version))) for seq in seqs]
            try:
                cursor = await self._bus.admit(self.line.term, first, tickets)
            except BusFull as error:
                self.blocked = str(error)
                return
            self.line.cursor = max(self.line.cursor, cursor)
            if cursor != seqs.stop:
                _log.warning("the bus's cursor is not ours", extra={"ours": first, "theirs": cursor})
                await self._reconcile()
                return
            self._pulse.add(admitted=len(tickets))

    def expect(self, version: Version) -> None:
        """Tickets that are sampled again wait for this version, which is on the log or will be next."""
        self._next_version = version

    async def reconcile(self) -> None:
        """Makes the bus agree with the line."""
        async with self._lock:
            await self._reconcile()

    async def _reconcile(self) -> None:
        self._generation += 1
        await self._holding.let_go()
        self._taken.set()

        async def agree() -> str:
            return await reconcile(
                self._bus,
                self.line,
                self._prompts,
                min_version=self._next_version,
                manifest=self._publisher.manifest,
                keep=self._keep_manifests,
            )

        self._incarnation = await until_mended(self._pulse, "server memory", agree, BusFull)
        self._arrived.set()


def _gauges(state: BusState) -> dict[str, float]:
    """The bus's state for Prometheus; a topic that has become empty is 0 from then on."""
    backlog = {f"backlog:{topic}": count for topic, count in state.backlog.items()}
    oldest = {f"oldest:{topic}": round(state.oldest_s.get(topic, 0.0), 3) for topic in state.backlog}
    return {**backlog, **oldest, "ledger:live": state.live, "ledger:applied": state.applied, "ledger:dead": state.dead}
