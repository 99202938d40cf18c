"""How many scorers a teacher should have: one pure function of what was seen last and what was decided before.

Guarantees: between the bounds; no change within `cool_down_s` of the last one, nor before those are up that it asked for; up only while
rollouts wait for longer than `age_s` and the learner has idle time, and never to more than the learner can take; down, one at a time, only
when rollouts have not waited for `_CALM` cool-downs on end and those who stay have room. So a burst moves it up once per cool-down while
it lasts, and bursts that come again and again make no see-saw.

The learner is the bottleneck where it is idle for less than `_LEARNER_IDLE`: its window is then full of scored samples, and what a further
scorer scores would only wait elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_LEARNER_IDLE = 0.05
_ROOM = 0.8  # utilisation of those who stay when one goes
_MOST_GROWTH = 2  # times as many in one decision
_CALM = 4  # cool-downs


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one teacher's scorers."""

    least: int
    most: int
    age_s: float  # how long a rollout may wait
    cool_down_s: float


@dataclass(frozen=True, slots=True)
class Sight:
    """What a teacher's queue and its scorers do at a moment, over the last few seconds."""

    at: float  # seconds on any one clock
    oldest_s: float  # age of the oldest rollout that waits for a score or is being scored
    backlog: int  # rollouts that do
    rate: float  # rollouts scored per second, by all its scorers
    busy: float  # share of the time in which a scorer has work, mean
    learner_idle: float  # share of the time in which the learner waits for scored samples
    up: int  # scorers that score


@dataclass(frozen=True, slots=True)
class Decision:
    """`count` scorers from now on; what the next decision must know besides."""

    count: int
    changed_at: float
    calm_since: float | None = None  # since when work has not waited; None: it waits
    why: str = ""


def decide(bounds: Bounds, sight: Sight, before: Decision) -> Decision:
    """The next decision; it is the one before, but for `calm_since`, where nothing is to change."""
    wait_s = waiting_time(sight)
    calm = None if wait_s > bounds.age_s else before.calm_since if before.calm_since is not None else sight.at
    stays = replace(before, calm_since=calm, why="")
    count = min(bounds.most, max(bounds.least, before.count))
    if count != before.count:
        return Decision(count, sight.at, calm, f"{bounds.least} to {bounds.most} are allowed")
    if sight.at - before.changed_at < bounds.cool_down_s or sight.up < before.count:
        return stays
    more = _more(bounds, sight, wait_s, count)
    if more > count:
        why = f"rollouts wait {wait_s:.0f} s and the learner is idle {sight.learner_idle:.0%} of the time"
        return Decision(more, sight.at, calm, why)
    if count > bounds.least and calm is not None and sight.at - calm >= _CALM * bounds.cool_down_s and _can_spare(sight, count):
        return Decision(count - 1, sight.at, calm, f"its scorers work only {sight.busy:.0%} of the time")
    return stays


def waiting_time(sight: Sight) -> float:
    """Seconds: what the oldest has waited, or what the last in the queue will wait, whichever is more."""
    if not sight.backlog:
        return 0.0
    return max(sight.oldest_s, sight.backlog / sight.rate) if sight.rate > 0 else sight.oldest_s


def _more(bounds: Bounds, sight: Sight, wait_s: float, count: int) -> int:
    """As many as bring the wait down to what is aimed at, and as the learner can take: at n scorers it is busy 1 − idle of the time, so
    n / (1 − idle) keep it busy always."""
    if wait_s <= bounds.age_s or sight.learner_idle < _LEARNER_IDLE:
        return count
    asked = count * wait_s / bounds.age_s
    useful = count / max(1e-9, 1 - sight.learner_idle) - _LEARNER_IDLE
    return math.ceil(min(asked, useful, _MOST_GROWTH * count, bounds.most))


def _can_spare(sight: Sight, count: int) -> bool:
    return sight.busy * count <= _ROOM * (count - 1)
