"""What the simulated roles share: samples, topics, the weights log, and who is busy when."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import simpy

from deploy.plan.machine import Machine

Process = simpy.events.ProcessGenerator


@dataclass(slots=True, eq=False)
class Sample:
    """One seq on its way. `spans`: step of the weights → tokens, in the order of sampling."""

    seq: int
    length: int
    min_step: int
    teachers: Sequence[str]  # still to score it
    attempt: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    bytes: int = 0  # on the server now


class Topic:
    """First come, first served."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._samples: deque[Sample] = deque()
        self._arrival = env.event()

    def __len__(self) -> int:
        return len(self._samples)

    def put(self, samples: Iterable[Sample]) -> None:
        """At the end."""
        self._samples.extend(samples)
        if self._samples:
            arrival, self._arrival = self._arrival, self._env.event()
            arrival.succeed()

    def take(self, count: int) -> list[Sample]:
        """Up to `count`, now."""
        return [self._samples.popleft() for _ in range(min(count, len(self._samples)))]

    def arrival(self) -> simpy.Event:
        """The next time that something is put."""
        return self._arrival


class Log:
    """The weights log: the step of the newest version."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self.step = -1
        self.published = env.event()

    def publish(self, step: int) -> None:
        """A newer version."""
        self.step = step
        event, self.published = self.published, self._env.event()
        event.succeed()


class Busy:
    """Seconds of work that one worker has done since `reset`: what it would take undisturbed, so that rivals make nobody busier."""

    def __init__(self, env: simpy.Environment, machine: Machine, nice: int, beside: float) -> None:
        self._env = env
        self._machine = machine
        self._nice = nice
        self._beside = beside
        self._counts_from = 0.0
        self.seconds = 0.0

    def work(self, seconds: float) -> Process:
        """Computes; what the process does beside its mathematics goes on at the same time, on shared cores."""
        if seconds <= 0:
            return
        begun = self._env.now
        if self._beside:
            self._machine.compute(seconds * self._beside, self._nice)
        yield self._machine.compute(seconds, self._nice)
        counts = self._env.now - max(begun, self._counts_from)
        self.seconds += seconds * counts / (self._env.now - begun)

    def reset(self) -> None:
        """What was before does not count."""
        self._counts_from, self.seconds = self._env.now, 0.0


@dataclass(slots=True)
class Sizes:
    """Bytes of a sample's message by topic, by the codec: so much, and so much for each answer token."""

    ticket: int
    rollout: tuple[float, float]
    scored: tuple[float, float]

    def after(self, sample: Sample, scores: int) -> int:
        """Of a rollout with so many scores."""
        whole, each = self.rollout
        more, more_each = self.scored
        return round(whole + each * sample.length + scores * (more + more_each * sample.length))


@dataclass(slots=True)
class Traffic:
    """Bytes on the server, and bytes that passed to and from it."""

    held: int = 0
    peak: int = 0
    moved: int = 0
    area: float = 0.0  # held · seconds
    _since: float = 0.0

    def change(self, sample: Sample, size: int, now: float) -> None:
        """The sample's entry now has `size` bytes; 0: it is gone. Each entry is written once and read once."""
        self.area += self.held * (now - self._since)
        self._since = now
        self.held += size - sample.bytes
        sample.bytes = size
        self.peak = max(self.peak, self.held)
        self.moved += 2 * size

    def reset(self, now: float) -> None:
        """What was before does not count."""
        self.area, self.moved, self.peak, self._since = 0.0, 0, self.held, now

    def mean(self, begun: float, now: float) -> float:
        """Bytes held, on average since `begun`."""
        return (self.area + self.held * (now - self._since)) / max(1e-9, now - begun)


@dataclass(slots=True)
class World:
    """One simulated run's common ground."""

    env: simpy.Environment
    machine: Machine
    log: Log
    tickets: Topic
    rollouts: Mapping[str, Topic]
    scored: Topic
    sizes: Sizes
    traffic: Traffic
