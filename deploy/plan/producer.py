"""A simulated producer: leases as producers/service.py does, joins as the torch engine's scheduler does, swaps weights between two steps.

With n answers in flight a decode step takes `fixed + each · n` seconds. Between two events all of them advance together, so that a
step costs nothing here: the engine jumps to the next end of an answer, at most `jump` steps on, within which nobody new can join.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from deploy.plan.world import Busy, Process, Sample, World

PATIENCE = 16  # producers/engines/torch/scheduler.py, which needs torch
_LINGER_S = 0.02  # producers/service.py


@dataclass(frozen=True, slots=True)
class Engine:
    """What it is and how fast."""

    slots: int
    refill: int
    jump: int
    fixed: float  # seconds of a decode step …
    each: float  # … and for each answer in it
    fetch_s: float
    load_s: float
    bus_s: float


@dataclass(slots=True)
class _Answers:
    """In flight: `done` counts decode steps since the start, by which an answer's end and the weights of its tokens are known."""

    done: int = 0
    ends: list[tuple[int, int, int, Sample]] = field(default_factory=list)  # end, seq, begin
    swaps: list[tuple[int, int]] = field(default_factory=list)  # from which step on, which weights

    def join(self, sample: Sample) -> None:
        heapq.heappush(self.ends, (self.done + sample.length, sample.seq, self.done, sample))

    def finished(self) -> list[Sample]:
        found = []
        while self.ends and self.ends[0][0] <= self.done:
            end, _, begin, sample = heapq.heappop(self.ends)
            sample.spans = self._spans(begin, end)
            found.append(sample)
        return found

    def _spans(self, begin: int, end: int) -> list[tuple[int, int]]:
        first = bisect_right(self.swaps, begin, key=lambda swap: swap[0]) - 1
        cuts = [(max(begin, at), step) for at, step in self.swaps[first:] if at < end]
        edges = [at for at, _ in cuts[1:]] + [end]
        return [(step, edge - at) for (at, step), edge in zip(cuts, edges, strict=True)]


class Producer:
    """One engine and who feeds it. `pool`: servers whose client asks the least loaded; empty: everyone for himself."""

    def __init__(self, world: World, engine: Engine, busy: Busy, pool: Sequence[Producer]) -> None:
        self._world = world
        self._pool = pool
        self._engine = engine
        self._busy = busy
        self._parked: list[Sample] = []  # leased, but their weights are not here
        self._queue: deque[Sample] = deque()
        self._answers = _Answers()
        self._fetched = -1
        self._waited = 0
        self._news = world.env.event()

    @property
    def in_flight(self) -> int:
        """Samples that it has leased and not sampled."""
        return len(self._parked) + len(self._queue) + len(self._answers.ends)

    def follow(self) -> Process:
        """Consumes the weights log: the newest version, one at a time."""
        world = self._world
        while True:
            if world.log.step <= self._fetched:
                yield world.log.published
            step = world.log.step
            yield world.env.timeout(self._engine.bus_s + self._engine.fetch_s)
            self._fetched = step
            news, self._news = self._news, world.env.event()
            news.succeed()

    def run(self) -> Process:
        """Consumes tickets and weights, produces rollouts, for ever."""
        while True:
            yield from self._swap()
            self._lease()
            self._join()
            active = len(self._answers.ends)
            if active:
                steps = max(1, min(self._answers.ends[0][0] - self._answers.done, self._engine.jump))
                yield from self._busy.work(steps * (self._engine.fixed + self._engine.each * active))
                self._advance(steps)
            elif not self._queue:
                yield self._world.tickets.arrival() | self._news

    def _swap(self) -> Process:
        answers = self._answers
        if (answers.swaps and self._fetched <= answers.swaps[-1][1]) or self._fetched < 0:
            return
        step = self._fetched
        yield from self._busy.work(self._engine.load_s)
        answers.swaps.append((answers.done, step))
        self._queue.extend(sample for sample in self._parked if sample.min_step <= step)
        self._parked = [sample for sample in self._parked if sample.min_step > step]

    def _lease(self) -> None:
        engine, at_work = self._engine, len(self._queue) + len(self._answers.ends)
        in_flight = self.in_flight
        wanted = min(engine.slots + engine.refill - at_work, engine.slots - in_flight + engine.slots // 4)
        if wanted <= 0 or wanted < min(engine.refill, in_flight):
            return
        if self._pool:
            together = sum(one.in_flight for one in self._pool) + len(self._world.tickets)
            wanted = min(wanted, ceil(together / len(self._pool)) - in_flight)
        newest = self._answers.swaps[-1][1] if self._answers.swaps else -1
        for sample in self._world.tickets.take(max(0, wanted)):
            (self._queue if sample.min_step <= newest else self._parked).append(sample)

    def _join(self) -> None:
        active = len(self._answers.ends)
        count = min(self._engine.slots - active, len(self._queue))
        if active and count < self._engine.refill and self._waited < PATIENCE:
            return
        self._waited = 0
        for _ in range(count):
            self._answers.join(self._queue.popleft())

    def _advance(self, steps: int) -> None:
        self._answers.done += steps
        self._waited += steps if self._queue else 0
        finished = self._answers.finished()
        if finished:
            self._world.env.process(self._hand_off(finished))

    def _hand_off(self, samples: list[Sample]) -> Process:
        world = self._world
        yield world.env.timeout(self._engine.bus_s + (_LINGER_S if self._answers.ends else 0.0))
        for sample in samples:
            world.traffic.change(sample, world.sizes.after(sample, 0), world.env.now)
            world.rollouts[sample.teachers[0]].put([sample])
