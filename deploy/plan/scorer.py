"""A simulated scorer: collects while its teacher is busy, lingers when there is little, hands off behind, as scorers/service.py does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import simpy

from deploy.plan.world import Busy, Process, Sample, Topic, World

_LINGER_S = 0.02  # scorers/service.py
_BUSY_S = 0.1


@dataclass(frozen=True, slots=True)
class Teacher:
    """What it is and how fast."""

    name: str
    budget: int  # tokens of a lease
    enough: int  # tokens that are worth a call at once
    prompt: int
    seconds_each: float  # of a token
    call_s: float
    bus_s: float


class Scorer:
    """One teacher and who feeds it."""

    def __init__(self, world: World, teacher: Teacher, busy: Busy, longest: int) -> None:
        self._world = world
        self._teacher = teacher
        self._busy = busy
        self._topic = world.rollouts[teacher.name]
        self._each = float(longest)  # running estimate, as in the product
        self._idle: simpy.Event | None = None  # while the teacher is busy: its end

    def run(self) -> Process:
        """Consumes rollouts, produces scored ones, for ever."""
        env = self._world.env
        ahead = env.process(self._fetch())
        while True:
            yield ahead
            jobs = cast("list[Sample]", ahead.value)
            ahead = env.process(self._fetch())
            self._idle = env.event()
            yield from self._busy.work(self._teacher.call_s + self._tokens(jobs) * self._teacher.seconds_each)
            idle, self._idle = self._idle, None
            idle.succeed()
            env.process(self._hand_off(jobs))

    def _fetch(self) -> Process:
        env, jobs, lingered = self._world.env, list[Sample](), False
        yield env.timeout(self._teacher.bus_s)
        while True:
            taken = self._topic.take(max(1, int((self._teacher.budget - self._tokens(jobs)) / self._each)))
            if taken:
                self._each += 0.5 * (self._tokens(taken) / len(taken) - self._each)
            jobs += taken
            if self._is_ready(jobs, lingered=lingered):
                return jobs
            lingered = bool(jobs) and self._idle is None
            if not jobs:
                yield self._topic.arrival()
            elif self._idle is None:
                yield env.timeout(_LINGER_S)
            else:
                yield self._idle | env.timeout(_BUSY_S)

    def _is_ready(self, jobs: Sequence[Sample], *, lingered: bool) -> bool:
        tokens = self._tokens(jobs)
        full = tokens + self._each > self._teacher.budget
        return bool(jobs) and (full or (self._idle is None and (lingered or tokens >= self._teacher.enough)))

    def _tokens(self, jobs: Sequence[Sample]) -> int:
        return sum(job.length for job in jobs) + self._teacher.prompt * len(jobs)

    def _hand_off(self, jobs: Sequence[Sample]) -> Process:
        world = self._world
        yield world.env.timeout(self._teacher.bus_s)
        for job in jobs:
            job.teachers = job.teachers[1:]
            world.traffic.change(job, world.sizes.after(job, 1), world.env.now)
        for topic in {id(self._next(job)): self._next(job) for job in jobs}.values():
            topic.put(job for job in jobs if self._next(job) is topic)

    def _next(self, job: Sample) -> Topic:
        return self._world.rollouts[job.teachers[0]] if job.teachers else self._world.scored
