"""The simulated learner: its window, batches and staleness are computed by the product's own code, only time is simulated.

Taken from the product: `Window.room` (who is admitted), `form` and `record_of` (which samples make a batch, what is masked, what is sampled
again), `Line` (what is applied), `samples_of` (how stale the trained tokens are). Here: one step after the other, the next batch prepared
while this one computes, publication beside training but before the next step at S = 0, as in learner/loop.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import simpy

from common.bus.base import SCORED, Lease
from common.config.sections import LearnerSection
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, StepRecord, Ticket, Version
from deploy.plan.lengths import Lengths
from deploy.plan.world import Busy, Process, Sample, World
from learner.batch import Formed, Held, form, record_of, samples_of
from learner.feeder import Window
from learner.line import Line

_TERM = 1
_WATCH_S = 1.0  # learner/ledger.py
_ASKED = Sampling(1.0, 1, ())


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it is."""

    seconds_each: float  # of a token
    step_s: float
    export_s: float
    put_s: float
    bus_s: float
    server_s: float  # CPU of the server for one sample
    prompt: int
    publish_every: int


@dataclass(slots=True)
class Trained:
    """What the steps since `reset` had in them."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    processed: int = 0
    masked: int = 0
    retried: int = 0
    mixed: int = 0
    publications: int = 0
    staleness: Counter[int] = field(default_factory=Counter)


class Learner:
    """One term. `lengths` by seq, `teachers` the routes that the samples take in turn."""

    def __init__(
        self,
        world: World,
        section: LearnerSection,
        pace: Pace,
        busy: Busy,
        *,
        lengths: Lengths,
        routes: list[list[str]],
        steps: int,
    ) -> None:
        self._world = world
        self._section = section
        self._pace = pace
        self._busy = busy
        self._lengths = lengths
        self._routes = routes
        self._window = Window(section.batch_size, section.max_staleness, steps, max_bytes=1, largest_sample=1)
        self._steps = steps
        self._line = Line(term=_TERM, lineage=[Version(_TERM, 0)])
        self._held: dict[int, Held] = {}
        self._live = 0
        self._step = 0
        self._blank = np.zeros(int(lengths.max()), np.int32)
        self._arrived = world.env.event()
        self._taken = world.env.event()
        self._publishing: simpy.Process | None = None
        self.trained = Trained()

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    def run(self) -> Process:
        """All steps."""
        env = self._world.env
        yield from self._put_out(0)
        preparing = env.process(self._prepare())
        for step in range(1, self._steps + 1):
            yield from self._prepared(preparing)
            record, scored = cast("tuple[StepRecord, list[ScoredRollout]]", preparing.value)
            preparing = env.process(self._prepare()) if step < self._steps else preparing
            yield from self._take(record, scored)

    def intake(self) -> Process:
        """Leases what is scored, for ever; no more than the next two batches unless order is strict."""
        section, strict = self._section, self._section.straggler == "wait"
        most = section.batch_size * (section.max_staleness + 2 if strict else 2)
        while True:
            room = most - len(self._held)
            if room <= 0 and not strict:
                yield self._taken
                continue
            if not len(self._world.scored):
                yield self._world.scored.arrival()
            yield self._world.env.timeout(self._pace.bus_s)
            for sample in self._world.scored.take(max(room, section.batch_size)):
                self._held[sample.seq] = self._held_of(sample)
            self._arrived = self._rung(self._arrived)

    def watch(self) -> Process:
        """Tops the window up between publications too."""
        while True:
            yield self._world.env.timeout(_WATCH_S)
            self._top_up()

    def _prepared(self, preparing: simpy.Process) -> Process:
        """Waits for the batch; publishes what is owed meanwhile."""
        while not preparing.processed:
            if self._is_owed():
                yield from self._publish()
            elif self._publishing is not None and self._publishing.is_alive:
                yield preparing | self._publishing
            else:
                yield preparing

    def _prepare(self) -> Process:
        while True:
            formed = self._formed()
            for one in formed.again:
                self._sample_again(self._held.pop(one.seq))
            if formed.batch:
                break
            self._taken = self._rung(self._taken)
            yield self._arrived
        record = record_of(formed.batch, self._line, self._section.max_staleness)
        self._line.apply(record)
        for one in formed.batch:
            del self._held[one.seq]
        self._taken = self._rung(self._taken)
        yield self._world.env.timeout(self._pace.bus_s)
        self._live -= len(formed.batch)
        for one in formed.batch:
            self._world.traffic.change(_sample_of(one), 0, self._world.env.now)
        return record, [one.scored for one in formed.batch]

    def _formed(self) -> Formed:
        """Asked only where it can be a batch: the product asks at every arrival, which costs time and changes nothing."""
        section = self._section
        if len(self._held) < section.batch_size:
            return Formed()
        return form(self._held, self._line, size=section.batch_size, max_staleness=section.max_staleness, straggler=section.straggler)

    def _take(self, record: StepRecord, scored: list[ScoredRollout]) -> Process:
        tokens = sum(len(one.rollout.completion.response_ids) for one in scored)
        processed = tokens + self._pace.prompt * len(scored)
        if self._pace.server_s:
            self._world.machine.compute(self._pace.server_s * len(scored))
        yield from self._busy.work(self._pace.step_s + processed * self._pace.seconds_each)
        self._step = record.step
        _, consumed = samples_of(record, scored, self._section.max_staleness)
        trained = self.trained
        trained.steps += 1
        trained.samples += len(scored)
        trained.tokens += tokens
        trained.processed += processed
        trained.masked += consumed.masked
        trained.mixed += consumed.mixed
        trained.staleness.update(consumed.staleness)
        if self._is_owed():
            yield from self._publish()
        if self._section.max_staleness == 0 and self._publishing is not None:
            yield self._publishing

    def _is_owed(self) -> bool:
        if self._publishing is not None and self._publishing.is_alive:
            return False
        every = min(self._pace.publish_every, self._section.max_staleness + 1)
        return self._step - self._world.log.step >= (1 if self._step == self._steps else every)

    def _publish(self) -> Process:
        yield from self._busy.work(self._pace.export_s)
        self._publishing = self._world.env.process(self._put_out(self._step))

    def _put_out(self, step: int) -> Process:
        yield self._world.env.timeout(self._pace.put_s + self._pace.bus_s)
        self._world.log.publish(step)
        self.trained.publications += 1
        yield self._world.env.timeout(self._pace.bus_s)
        self._top_up()

    def _top_up(self) -> None:
        published = self._world.log.step
        room = self._window.ahead(published, self._line.applied, self._live)
        admitted = []
        for seq in range(self._line.cursor, self._line.cursor + max(0, room)):
            length, route = int(self._lengths[seq % len(self._lengths)]), self._routes[seq % len(self._routes)]
            admitted.append(Sample(seq, length, published, route))
        self._line.cursor += len(admitted)
        self._live += len(admitted)
        for sample in admitted:
            self._world.traffic.change(sample, self._world.sizes.ticket, self._world.env.now)
        self._world.tickets.put(admitted)

    def _held_of(self, sample: Sample) -> Held:
        ids = self._blank[: sample.length]
        spans = tuple(Span(_TERM, step, tokens, True) for step, tokens in sample.spans)
        ticket = Ticket(sample.seq, sample.attempt, "", self._blank[:0], _ASKED, (), Version(_TERM, sample.min_step))
        rollout = Rollout(ticket, Completion(ids, ids.view(np.float32), spans, "stop"))
        lease = _SampleLease(SCORED, "", sample.seq, sample.attempt, b"", 1, sample=sample)
        return Held(lease, ScoredRollout(rollout))

    def _sample_again(self, one: Held) -> None:
        old = _sample_of(one)
        self.trained.retried += 1
        if old.attempt + 1 >= self._section.max_attempts:
            self._line.bury({old.seq: "stale"})
            self._live -= 1
            self._world.traffic.change(old, 0, self._world.env.now)
            return
        route = self._routes[old.seq % len(self._routes)]
        again = Sample(old.seq, old.length, max(0, self._world.log.step), route, old.attempt + 1, bytes=old.bytes)
        self._world.traffic.change(again, self._world.sizes.ticket, self._world.env.now)
        self._world.tickets.put([again])

    def _rung(self, event: simpy.Event) -> simpy.Event:
        event.succeed()
        return self._world.env.event()


@dataclass(frozen=True, slots=True)
class _SampleLease(Lease):
    """Knows what it stands for."""

    sample: Sample | None = None


def _sample_of(one: Held) -> Sample:
    assert isinstance(one.lease, _SampleLease)
    assert one.lease.sample is not None
    return one.lease.sample
