"""The smallest layout that keeps the learner busy, and its neighbours.

Guarantee: pure. Where no layout reaches the goal - strict order, too small a window, shared cores - the smallest that is as good as the
best is chosen, and `reached` says so. More workers of a kind never make the learner idler but by the cores they share: the search relies
on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from deploy.plan.rates import Rates
from deploy.plan.simulate import Layout, Outcome, Setting, simulate

GOAL = 0.95
_AS_GOOD = 0.95
_MOST = 512
_MORE = 1.1  # what doubling must bring to be tried again


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows`: the configuration as it is, the choice and its neighbours, each once."""

    rates: Rates
    version_bytes: int
    now: Outcome
    best: Outcome
    ceiling: float  # the busiest learner that any layout has
    rows: tuple[Outcome, ...]

    @property
    def reached(self) -> bool:
        """Whether the goal can be reached at all."""
        return self.best.learner_busy >= GOAL


def choose(setting: Setting) -> Plan:
    """Simulates as few layouts as it takes."""
    seen: dict[Layout, Outcome] = {}

    def outcome(layout: Layout) -> Outcome:
        if layout not in seen:
            seen[layout] = simulate(setting, layout)
        return seen[layout]

    now = outcome(setting.now)
    roomy = _roomy(setting, outcome)
    ceiling = max(one.learner_busy for one in seen.values())
    goal = GOAL if ceiling >= GOAL else _AS_GOOD * ceiling
    scorers = _least(roomy.scorers, lambda count: outcome(Layout(roomy.producers, count)).learner_busy >= goal)
    producers = _least(roomy.producers, lambda count: outcome(Layout(count, scorers)).learner_busy >= goal)
    best = outcome(Layout(producers, scorers))
    rows = {one.layout: one for one in (now, best, *map(outcome, _neighbours(best.layout)))}
    ordered = sorted(rows.values(), key=lambda one: (one.layout.producers, one.layout.scorers))
    return Plan(setting.rates, setting.version_bytes, now, best, ceiling, tuple(ordered))


def _roomy(setting: Setting, outcome: Callable[[Layout], Outcome]) -> Layout:
    """More than enough: doubled from what the rates alone ask for, until the learner gains nothing more."""
    layout = _by_rates(setting)
    busy = outcome(layout).learner_busy
    while busy < GOAL:
        larger = Layout(min(_MOST, 2 * layout.producers), min(_MOST, 2 * layout.scorers))
        gained = outcome(larger).learner_busy
        if gained < _MORE * busy:
            return larger if gained > busy else layout
        layout, busy = larger, gained
    return layout


def _by_rates(setting: Setting) -> Layout:
    """As many as could feed a learner that never waits, were nothing ever waited for."""
    rates, config, one = setting.rates, setting.config, float(setting.lengths.mean())
    batch = config.learner.batch_size
    step_s = rates.learner.step_s + batch * (one + rates.answers.prompt_tokens) / rates.learner.tokens_per_s
    producers = batch * one / step_s / rates.student.tokens_per_s
    scorers = batch * (one + rates.answers.prompt_tokens) / step_s / rates.teacher.tokens_per_s / len(config.teachers)
    return Layout(min(_MOST, ceil(producers)), min(_MOST, ceil(scorers)))


def _least(most: int, enough: Callable[[int], bool]) -> int:
    """The smallest count that is enough; `most` is."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _neighbours(best: Layout) -> list[Layout]:
    around = [(-1, 0), (0, -1), (0, 1), (1, 0)]
    layouts = [Layout(best.producers + more, best.scorers + scoring) for more, scoring in around]
    return [layout for layout in layouts if layout.producers and layout.scorers]
