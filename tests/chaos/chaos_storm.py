"""A seeded order of faults, let loose on a run: several at once, but never two on one place."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from random import Random

import chaos_faults as faults
import chaos_outages as outages
from chaos_faults import Fault, Unexpected
from chaos_line import Line
from chaos_world import World

PRODUCERS = ("producer",)
SCORERS = ("scorer-0", "scorer-1")
MODULES = {"learner": "learner", "producer": "producers", "scorer-0": "scorers", "scorer-1": "scorers"}
_MOST_AT_ONCE = 5


@dataclass(slots=True)
class Injected:
    """One fault. `step`: where the run was; `failure`: how a promise was broken."""

    kind: str
    at: float
    step: int
    failure: str = ""
    survived: bool = False


@dataclass(slots=True)
class Storm:
    """`injected` grows while it lasts."""

    rng: Random
    most: int
    gap_s: float
    kinds: Collection[str] = ()  # all where empty
    ends: float = math.inf  # the time, on the monotonic clock, after which nothing more is begun
    injected: list[Injected] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)  # kind -> how often an occasion was looked for, found or not
    _busy: set[str] = field(default_factory=set)
    _under_way: int = 0

    async def rage(self, world: World) -> None:
        """Until the run is done, enough is injected or the time is up; returns when the last fault is over."""
        self._arm_rare_losses(world)
        queue = self._in_order()
        waiting: list[Fault] = []
        async with asyncio.TaskGroup() as tasks:
            while not world.done and len(self.injected) + self._under_way < self.most and time.monotonic() < self.ends:
                if len(waiting) < 6:
                    waiting.append(next(queue))
                fault = next((one for one in waiting if not one.needs & self._busy), None)
                if fault is None or self._under_way >= _MOST_AT_ONCE:
                    await asyncio.sleep(0.05)
                    continue
                waiting.remove(fault)
                self._busy |= fault.needs
                self._under_way += 1
                tasks.create_task(self._inject(fault, world, Random(self.rng.random())), name=fault.kind)
                await asyncio.sleep(self.rng.uniform(0.2, 1.8) * self.gap_s)
        rare = sum(line.lost[call] for line in _lines(world) for call in outages.RARE_CALLS)
        self.injected += [Injected("network: reply lost, of a rare call", 0.0, 0) for _ in range(rare)]
        for one in self.injected:
            one.survived = not one.failure and (world.done or world.step > one.step)

    def _arm_rare_losses(self, world: World) -> None:
        """Nobody can wait for these calls: the first of each on every line loses its reply, whenever it comes."""
        for line in _lines(world):
            line.lose.update(dict.fromkeys(outages.RARE_CALLS, 1))

    def _in_order(self) -> Iterator[Fault]:
        while True:
            deck = [fault for fault in every_fault(self.rng) if not self.kinds or fault.kind in self.kinds]
            self.rng.shuffle(deck)
            yield from deck

    async def _inject(self, fault: Fault, world: World, rng: Random) -> None:
        began = Injected(fault.kind, time.monotonic(), world.step)
        try:
            if hit := await fault.inject(world, rng):
                self.injected.append(began)
            self.tried[fault.kind] += hit or not world.done
        except Unexpected as error:
            began.failure = str(error)
            self.injected.append(began)
        finally:
            self._busy -= fault.needs
            self._under_way -= 1


def _lines(world: World) -> list[Line]:
    return [post.line for post in world.posts.values()]


def every_fault(rng: Random) -> Iterator[Fault]:
    """Each kind at least once."""
    yield from _of_hops(rng)
    yield from _of_learner(rng)
    yield from _of_server()
    yield from _of_lines(rng)


def _of_hops(rng: Random) -> Iterator[Fault]:
    for post in (*PRODUCERS, *SCORERS):
        role, place = post.partition("-")[0], frozenset({post})
        yield Fault(f"{role}: killed", place, faults.killed(post))
        yield Fault(f"{role}: killed while starting", place, faults.killed_twice(post))
        for point in faults.HOP_POINTS:
            yield Fault(f"{role}: killed at {point}", place, faults.killed_at(post, point))
    yield Fault("producer: frozen past its lease", frozenset(PRODUCERS), faults.frozen("producer", "computed"))
    yield Fault("scorer: frozen past its lease", frozenset(SCORERS), faults.frozen(rng.choice(SCORERS), "computed"))


def _of_learner(rng: Random) -> Iterator[Fault]:
    place = frozenset({"learner"})
    yield Fault("learner: killed", place, faults.killed("learner"))
    yield Fault("learner: killed while starting", place, faults.killed_twice("learner"))
    for point in faults.LEARNER_POINTS:
        yield Fault(f"learner: killed at {point}", place, faults.killed_at("learner", point))
    point = rng.choice(faults.NEWBORN_POINTS)
    yield Fault("learner: killed in resuming", place, faults.newborn_killed_at(point))
    yield Fault("learner: frozen past its lease", place, faults.frozen("learner"))
    alone = frozenset({"learner", "server"})
    yield Fault("learner: a second one", alone, faults.second_learner)
    yield Fault("learner: taken over", alone, faults.taken_over)
    yield Fault("learner: zombie", alone, faults.zombie(rng.choice(faults.ZOMBIE_POINTS)))


def _of_server() -> Iterator[Fault]:
    place = frozenset({"server"})
    yield Fault("server: killed", place, outages.server_killed)
    yield Fault("server: killed", place, outages.server_killed)
    yield Fault("server: set back in time", place, outages.server_set_back)
    yield Fault("server: empty", place, outages.server_empty)
    yield Fault("server: empty, learner dead", place | {"learner"}, outages.server_empty_and_learner_dead)
    yield Fault("server: hangs", place, outages.server_hangs)
    yield Fault("server: its clock leaps", place, outages.server_clock_leaps)


def _of_lines(rng: Random) -> Iterator[Fault]:
    for post in MODULES:
        own = frozenset({f"line of {post}"})
        calls = outages.LEARNER_CALLS if post == "learner" else outages.HOP_CALLS
        yield Fault("network: cut", own, outages.cut_off(post))
        yield Fault("network: slow", own, outages.slow(post))
        yield Fault("clock of a role leaps", own, outages.clock_leaps(post))
        for call in rng.sample(calls, 3):
            yield Fault("network: reply lost", own, outages.reply_lost(post, call))
    call = rng.choice(outages.NEWBORN_CALLS)
    yield Fault("network: reply lost in resuming", frozenset({"learner", "line of learner"}), outages.replies_lost_in_resuming(call))
