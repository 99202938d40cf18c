"""The autoscaling policy against a simulated pipeline: closed by the window, as the real one is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.autoscale import Bounds, Decision, Sight, decide, waiting_time

BOUNDS = Bounds(least=1, most=16, age_s=3.0, cool_down_s=30.0)
WINDOW = 1024
SCORER, LEARNER = 15.0, 120.0  # rollouts per second: eight scorers keep the learner busy
START_S = 5.0
SECOND = 1.0


@dataclass
class Pipeline:
    """A fluid: tickets → producers → rollouts → scorers → scored → learner → tickets."""

    produce: Callable[[float], float]
    scorer: float = SCORER
    learner: float = LEARNER
    bounds: Bounds = BOUNDS
    tickets: float = WINDOW
    rollouts: float = 0.0
    scored: float = 0.0
    decision: Decision = field(default_factory=lambda: Decision(1, 0.0))
    born: list[float] = field(default_factory=lambda: [-1e9])
    history: list[tuple[float, int]] = field(default_factory=list)  # time, scorers
    sights: list[Sight] = field(default_factory=list)
    applied: float = 0.0

    def run(self, seconds: int) -> None:
        for now in range(seconds):
            self._second(float(now))

    def _second(self, now: float) -> None:
        up = sum(now - born >= START_S for born in self.born)
        made = min(self.tickets, self.produce(now))
        done = min(self.rollouts, up * self.scorer)
        trained = min(self.scored, self.learner)
        self.tickets += trained - made
        self.rollouts += made - done
        self.scored += done - trained
        self.applied += trained
        busy = done / (up * self.scorer) if up else 0.0
        rate = max(done, 1e-9)
        sight = Sight(now, self.rollouts / rate, int(self.rollouts), done, busy, 1 - trained / self.learner, up)
        self.sights.append(sight)
        self.decision = decide(self.bounds, sight, self.decision)
        self.born = (self.born + [now] * self.decision.count)[: self.decision.count]
        self.history.append((now, self.decision.count))

    @property
    def changes(self) -> list[tuple[float, int]]:
        return [(now, count - before) for (_, before), (now, count) in pairwise(self.history) if count != before]


def test_it_grows_until_the_learner_is_busy_and_not_further() -> None:
    pipeline = Pipeline(produce=lambda _: 1e9)
    pipeline.run(600)
    assert [count for _, count in pipeline.changes] == [1, 2, 4]  # 1 → 2 → 4 → 8
    assert pipeline.history[-1][1] == 8
    assert pipeline.sights[-1].learner_idle < 0.05


@pytest.mark.parametrize("learner", [10.0, 40.0, 70.0, 130.0, 200.0])
def test_what_it_settles_on_is_what_the_learner_can_take(learner: float) -> None:
    pipeline = Pipeline(produce=lambda _: 1e9, learner=learner)
    pipeline.run(900)
    needed = max(1, math.ceil(learner / SCORER))
    assert max(count for _, count in pipeline.history) <= needed
    assert pipeline.history[-1][1] * SCORER >= 0.9 * learner


def test_producers_that_are_the_bottleneck_get_no_scorers_for_nothing() -> None:
    pipeline = Pipeline(produce=lambda _: 28.0)
    pipeline.run(1800)
    assert max(count for _, count in pipeline.history) <= 4  # for what had piled up before
    assert pipeline.history[-1][1] <= 3


def test_a_burst_shorter_than_the_cool_down_moves_it_at_most_once() -> None:
    pipeline = Pipeline(produce=lambda now: 100.0 if 100 <= now < 102 else 10.0)
    pipeline.run(400)
    assert [delta for _, delta in pipeline.changes if delta > 0] == [1]
    assert all(now >= 100 for now, _ in pipeline.changes)


@pytest.mark.parametrize("period", [7, 20, 45, 90])
def test_bursts_that_come_again_and_again_make_no_see_saw(period: int) -> None:
    pipeline = Pipeline(produce=lambda now: 100.0 if int(now / period) % 2 else 10.0)
    pipeline.run(1800)
    late = [delta for now, delta in pipeline.changes if now > 600]
    turns = sum(one * other < 0 for one, other in pairwise(late))
    assert turns <= (2 if period < BOUNDS.cool_down_s else 1200 / (4 * BOUNDS.cool_down_s))
    gaps = [b - a for (a, _), (b, _) in pairwise(pipeline.changes)]
    assert min(gaps, default=BOUNDS.cool_down_s) >= BOUNDS.cool_down_s


def test_a_steady_load_leaves_it_alone() -> None:
    pipeline = Pipeline(produce=lambda _: 70.0)
    pipeline.run(1800)
    assert [change for change in pipeline.changes if change[0] > 600] == []


def test_when_the_load_has_gone_it_goes_down_one_by_one() -> None:
    pipeline = Pipeline(produce=lambda now: 1e9 if now < 300 else 5.0)
    pipeline.run(1200)
    assert max(count for _, count in pipeline.history) == 8
    assert {delta for now, delta in pipeline.changes if now > 300} == {-1}
    assert pipeline.history[-1][1] == 1


def test_it_waits_for_those_it_has_asked_for() -> None:
    before = Decision(4, changed_at=-100.0)
    sight = Sight(at=0.0, oldest_s=60.0, backlog=900, rate=15.0, busy=1.0, learner_idle=0.9, up=1)
    assert decide(BOUNDS, sight, before).count == 4


def test_a_queue_that_nobody_serves_is_as_old_as_its_oldest() -> None:
    sight = Sight(at=0.0, oldest_s=42.0, backlog=7, rate=0.0, busy=0.0, learner_idle=1.0, up=1)
    assert waiting_time(sight) == 42.0
    assert decide(BOUNDS, sight, Decision(1, -1e9)).count == 2


@pytest.mark.parametrize("idle", [0.0, 0.02, 0.049])
@pytest.mark.parametrize("count", range(1, 16))
def test_a_learner_that_is_the_bottleneck_gets_no_scorer_more(count: int, idle: float) -> None:
    sight = Sight(at=0.0, oldest_s=500.0, backlog=5000, rate=10.0, busy=1.0, learner_idle=idle, up=count)
    assert decide(BOUNDS, sight, Decision(count, -1e9)).count == count


SIGHTS = st.builds(
    Sight,
    at=st.floats(0, 1e6),
    oldest_s=st.floats(0, 1e5),
    backlog=st.integers(0, 100_000),
    rate=st.floats(0, 1e5),
    busy=st.floats(0, 1),
    learner_idle=st.floats(0, 1),
    up=st.integers(0, 64),
)


@settings(max_examples=200, deadline=None)
@given(sight=SIGHTS, count=st.integers(1, 64), changed_at=st.floats(-1e6, 1e6), calm=st.none() | st.floats(0, 1e6))
def test_whatever_it_sees_it_keeps_the_bounds_and_never_adds_scorers_to_a_busy_learner(
    sight: Sight, count: int, changed_at: float, calm: float | None
) -> None:
    decided = decide(BOUNDS, sight, Decision(count, changed_at, calm))
    assert BOUNDS.least <= decided.count <= BOUNDS.most
    if BOUNDS.least <= count <= BOUNDS.most:
        assert decided.count <= 2 * count
        if sight.learner_idle < 0.05:
            assert decided.count <= count
        if sight.at - changed_at < BOUNDS.cool_down_s:
            assert decided.count == count
