"""What computes: a device for every worker, or so many cores that all of them share.

Shared cores are divided as a scheduler does: each piece of work gets a share by its weight, never more than one core; what one cannot use
goes to the others. Times are seconds of the simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import simpy

_NOTHING = 1e-9  # seconds of work
_WEIGHT_PER_NICE = 0.8  # Linux: each step of niceness costs a fifth


@dataclass(slots=True, eq=False)
class _Work:
    left: float
    weight: float
    done: simpy.Event
    speed: float = 0.0


class Machine:
    """`cores` = 0: everyone has a device."""

    def __init__(self, env: simpy.Environment, cores: int) -> None:
        self._env = env
        self._cores = cores
        self._works: list[_Work] = []
        self._since = 0.0
        self._turn = 0
        self.spent = 0.0
        """Core seconds so far."""

    def compute(self, seconds: float, nice: int = 0) -> simpy.Event:
        """An event at the end of work that takes `seconds` of a device, or of one core without rivals."""
        if not self._cores:
            self.spent += seconds
            return self._env.timeout(seconds)
        self._advance()
        work = _Work(seconds, _WEIGHT_PER_NICE**nice, self._env.event())
        self._works.append(work)
        self._divide()
        return work.done

    def _advance(self) -> None:
        elapsed, self._since = self._env.now - self._since, self._env.now
        for work in self._works:
            work.left -= elapsed * work.speed
            self.spent += elapsed * work.speed
        for work in [work for work in self._works if work.left <= _NOTHING]:
            self._works.remove(work)
            work.done.succeed()

    def _divide(self) -> None:
        free, weights = float(self._cores), sum(work.weight for work in self._works)
        for work in sorted(self._works, key=lambda work: -work.weight):
            work.speed = min(1.0, free * work.weight / weights)
            free -= work.speed
            weights -= work.weight
        self._turn += 1
        if self._works:
            alarm = self._env.timeout(min(work.left / work.speed for work in self._works), self._turn)
            alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm.value == self._turn:  # nothing has come or gone since it was set
            self._advance()
            self._divide()
