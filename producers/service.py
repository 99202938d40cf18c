"""A producer: lease a ticket → sample → hand off the rollout; evaluations first.

Consumes `eval` and `tickets`; waits for weights of at least the ticket's `min_version`; produces `rollouts:<first teacher of the slip>` and
`evaluated`. Every leased ticket is a task; finished ones are handed off together. A ticket that another worker had before is quarantined:
it is sampled in a small group, then alone, and what keeps failing alone goes to the dead letters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import ClassVar

from common.bus.base import EVAL, EVALUATED, TICKETS, Burial, Lease, Move, rollouts
from common.codec import decode, encode
from common.config import RunConfig
from common.errors import BusFull, OtherSchema, Rejected, WireError
from common.hop import hop, now_ms
from common.leases import quarantine_size
from common.loading import loading
from common.messages import Evaluated, Hop, Rollout, ScoredRollout, Ticket
from common.patience import until_mended
from common.pulse import Pulse
from common.service import Worker
from producers.engines.base import Engine
from producers.follower import WeightsFollower
from producers.judge import Judge

log = logging.getLogger(__name__)

Finished = tuple[Lease, Rollout, Hop]

_LINGER_S = 0.04
"""A finished rollout waits so long for others to be handed off with, while others are still being sampled."""


class Producer:
    """Feeds one engine."""

    _idle_share: ClassVar[float] = 0.5  # fewer sequences than this share of the slots: the producer starves

    def __init__(self, *, worker: Worker, engine: Engine, follower: WeightsFollower, judge: Judge) -> None:
        self._worker = worker
        self._engine = engine
        self._follower = follower
        self._judge = judge
        self._slots = worker.config.producer.slots
        self._finished: asyncio.Queue[Finished | Burial] = asyncio.Queue()
        self._freed = asyncio.Event()
        self._refill = max(1, int(worker.config.producer.refill_share * self._slots))  # leased at once, as the engine joins them
        self._in_flight = 0
        self._few = self._idle_share * min(self._slots, worker.config.window)
        self._leasing = False
        self._hunger: ExitStack | None = None  # open while it waits for tickets
        self._wake_at = 0

    async def run(self) -> None:
        """Serves until told to stop, then finishes what it holds."""
        async with asyncio.TaskGroup() as background:
            follow = background.create_task(self._follower.run(), name="weights follower")
            hand_off = background.create_task(self._hand_off_finished(), name="hand-off")
            background.create_task(self._wake_the_waiting(), name="waiting tickets")
            async with asyncio.TaskGroup() as tickets:
                await self._lease_until_stopped(tickets)
            await self._finished.join()
            follow.cancel()
            hand_off.cancel()

    async def _lease_until_stopped(self, tasks: asyncio.TaskGroup) -> None:
        worker = self._worker
        while not worker.stopping.is_set():
            wanted = min(self._engine.wanted, self._slots - self._in_flight + self._slots // 4)
            short = min(self._refill, self._in_flight) - wanted
            if short > 0 or wanted <= 0:
                await self._until_freed(max(1, short))
                continue
            leases = await self._lease(wanted)
            worker.keeper.hold(leases)
            self._start(tasks, [lease for lease in leases if lease.deliveries <= 1])
            await self._quarantine([lease for lease in leases if lease.deliveries > 1])

    async def _lease(self, wanted: int) -> list[Lease]:
        self._leasing = True
        self._tell_hunger()
        try:
            return await self._worker.bus.lease((EVAL, TICKETS), wanted, self._worker.config.service.heartbeat_s)
        finally:
            self._leasing = False
            self._tell_hunger()

    def _tell_hunger(self) -> None:
        """It waits for tickets from the moment when too few sequences run, which may come in the middle of a lease."""
        hungry = self._leasing and self._in_flight < self._few
        if hungry and self._hunger is None:
            self._hunger = ExitStack()
            self._hunger.enter_context(self._worker.pulse.waiting("tickets"))
        elif not hungry and self._hunger is not None:
            self._hunger.close()
            self._hunger = None

    async def _until_freed(self, count: int) -> None:
        """Until `count` of the tickets in flight are done, or a heartbeat has passed."""
        self._wake_at = self._in_flight - count
        self._freed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._freed.wait(), self._worker.config.service.heartbeat_s)

    def _start(self, tasks: asyncio.TaskGroup, leases: Sequence[Lease]) -> list[asyncio.Task[None]]:
        self._in_flight += len(leases)
        return [tasks.create_task(self._sample(lease), name=f"seq {lease.seq}") for lease in leases]

    async def _quarantine(self, suspects: list[Lease]) -> None:
        """Samples suspects apart from everything else, the oftener delivered the smaller the group."""
        if not suspects:
            return
        while self._in_flight:
            await self._until_freed(self._in_flight)
        suspects.sort(key=lambda lease: lease.deliveries)
        while suspects:
            size = quarantine_size(suspects[-1].deliveries, self._slots)
            group, suspects = suspects[-size:], suspects[:-size]
            group = [lease for lease in group if self._worker.keeper.holds(lease)]  # not what was given back while it waited for its turn
            if not group or (size == 1 and await self._is_poison(group[0])):
                continue
            async with asyncio.TaskGroup() as tasks:
                self._start(tasks, group)

    async def _is_poison(self, lease: Lease) -> bool:
        tries = await self._worker.bus.begin_alone(lease)
        if tries < self._worker.config.learner.max_attempts:
            return False
        await self._worker.bus.bury([Burial(lease, f"poison: {tries} producers failed on it alone")])
        self._worker.keeper.drop([lease])
        return True

    async def _sample(self, lease: Lease) -> None:
        """One ticket: wait for its weights, sample, queue the outcome."""
        try:
            ticket = decode(lease.payload, Ticket)
            assert isinstance(ticket, Ticket)
            if self._engine.version < ticket.min_version:
                await self._until_weights_came(ticket, lease)
            if self._engine.version < ticket.min_version or not self._worker.keeper.holds(lease):
                return  # the lease goes, or went, back with the others
            began = now_ms()
            with self._worker.keeper.computing([lease]):
                completion = await self._engine.generate(ticket)
            self._finished.put_nowait((lease, Rollout(ticket, completion), hop(self._worker.name, lease, began)))
        except OtherSchema:
            raise
        except (Rejected, WireError) as error:
            self._finished.put_nowait(Burial(lease, str(error)))
        finally:
            self._in_flight -= 1
            self._tell_hunger()
            if self._in_flight <= self._wake_at:
                self._freed.set()

    async def _until_weights_came(self, ticket: Ticket, lease: Lease) -> None:
        """Or until it is told to stop, or has lost the lease."""
        worker = self._worker
        with worker.pulse.waiting("weights"):
            while self._engine.version < ticket.min_version and worker.keeper.holds(lease) and not worker.stopping.is_set():
                await self._follower.news()

    async def _wake_the_waiting(self) -> None:
        """At every heartbeat and at the order to stop: weights are not all that they wait for."""
        worker = self._worker
        while not worker.stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(worker.stopping.wait(), worker.config.service.heartbeat_s)
            self._follower.wake()

    async def _hand_off_finished(self) -> None:
        while True:
            batch = [await self._finished.get()]
            if self._in_flight:
                await asyncio.sleep(_LINGER_S)
            while not self._finished.empty():
                batch.append(self._finished.get_nowait())
            await self._hand_off([entry for entry in batch if not isinstance(entry, Burial)])
            await self._bury([entry for entry in batch if isinstance(entry, Burial)])
            for _ in batch:
                self._finished.task_done()

    async def _hand_off(self, finished: Sequence[Finished]) -> None:
        if not finished:
            return
        worker = self._worker
        judged = [(lease, rollout) for lease, rollout, _ in finished if lease.topic == EVAL]
        verdicts: list[Evaluated] = await self._judge.judge([rollout for _, rollout in judged]) if judged else []
        with worker.pulse.cpu("codec"):
            moves = [
                Move(lease, _next_topic(r), encode(ScoredRollout(r, hops=(told,)))) for lease, r, told in finished if lease.topic != EVAL
            ]
            moves += [Move(lease, EVALUATED, encode(verdict)) for (lease, _), verdict in zip(judged, verdicts, strict=True)]
        with worker.keeper.leaving([lease for lease, _, _ in finished]):
            outcomes = await until_mended(worker.pulse, "server memory", lambda: worker.bus.hand_off(moves), BusFull)
        worker.pulse.add(
            samples=len(finished) - len(judged),
            evaluated=len(judged),
            tokens=sum(len(rollout.completion.response_ids) for _, rollout, _ in finished),
            refused=outcomes.count("refused"),
        )

    async def _bury(self, burials: Sequence[Burial]) -> None:
        if burials:
            log.warning("cannot sample", extra={"seqs": [b.lease.seq for b in burials], "reason": burials[0].reason})
            with self._worker.keeper.leaving([burial.lease for burial in burials]):
                await self._worker.bus.bury(burials)


def _next_topic(rollout: Rollout) -> str:
    return rollouts(rollout.ticket.slip[0].teacher)


_OpenEngine = Callable[[RunConfig, Pulse, asyncio.AbstractEventLoop], Engine]


def _timed(opener: _OpenEngine, config: RunConfig, pulse: Pulse, loop: asyncio.AbstractEventLoop) -> Engine:
    with pulse.cpu("startup"):
        return opener(config, pulse, loop)


async def produce(worker: Worker) -> None:
    """The body of a producer's process."""
    from common import bus as buses
    from common.weights import open_store

    config = worker.config
    worker.pulse.state("loads the student")
    with loading():
        from producers.engines import open_engine

        engine = await asyncio.to_thread(_timed, open_engine, config, worker.pulse, asyncio.get_running_loop())
    worker.pulse.state("samples")
    try:
        async with buses.connect(config, name=worker.name, role="follower") as reader:  # this user may write nothing
            poll_s = config.service.heartbeat_s
            follower = WeightsFollower(bus=reader, store=open_store(config), engine=engine, pulse=worker.pulse, poll_s=poll_s)
            await Producer(worker=worker, engine=engine, follower=follower, judge=Judge(config)).run()
    finally:
        await engine.aclose()
