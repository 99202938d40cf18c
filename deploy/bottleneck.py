"""Who waits for whom, from two successive snapshots: one line, and only what the two readings say (P7).

A stage's busy share is the share of wall time in which it was not waiting for another stage; publishing is busy while the learner waits for
a publication or producers wait for weights; Redis is busy while somebody who has nothing to do waits for an overdue answer of it. The place
that keeps the others waiting is the busy one: a learner that hardly ever waits is the bottleneck by definition, otherwise it is the busiest
of the others. A server that does not answer, a role or a teacher without any worker alive, and a learner that admits nothing come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from common.pulse import Report
from deploy.snapshot import Snapshot

Place = Literal["sampling", "scoring", "training", "publishing", "Redis", "admission", "dead letters", "outside"]

_PLACE_OF: Mapping[str, Place] = {"producer": "sampling", "scorer": "scoring", "learner": "training"}
_WORKERS: Mapping[Place, str] = {"sampling": "the producers", "scoring": "the scorers", "training": "the learner"}
_INPUT: Mapping[str, str] = {"producer": "tickets", "scorer": "rollouts", "learner": "scored"}
_BETWEEN = frozenset({"tickets", "rollouts", "scored", "weights", "publication", "admission", "bus"})
"""Causes that lie outside the worker's own stage; `teacher` and `evaluation` do not. `server`, an overdue answer, is beside them: it may
come while the worker computes."""
_HARDLY_WAITS = 0.8
_REDIS_HOLDS = 0.3
_SLOW_ANSWER_S = 0.3
_ADMITS_NOTHING = 0.5
"""Share of the learner's time."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Where the run is held up, and the sentence that says so."""

    place: Place
    line: str


def bottleneck(before: Snapshot, after: Snapshot) -> Bottleneck | None:
    """None where the two say nothing: too close together, no learner yet, or a learner that has not begun to train."""
    if after.state is not None and after.state.obstacle:  # first: a server that takes no writes has nobody's report either
        return Bottleneck("Redis", f"everyone waits for Redis: {after.state.obstacle}")
    elapsed = after.at - before.at
    if elapsed <= 0 or after.gauge("step") is None:
        return None
    if after.state is None:
        return Bottleneck("Redis", "everyone waits for Redis: it does not answer")
    shares = {role: mean_shares(before, after, role, elapsed) for role in _PLACE_OF}
    found = _outside(after) or _missing(after) or _standstill(before, after, shares)
    if found is not None or not shares["learner"]:
        return found
    place = _busiest(shares)
    return Bottleneck(place, f"{_victim(place, shares)}: {_verdict(place)} ({_evidence(place, shares, after)})")


def _standstill(before: Snapshot, after: Snapshot, shares: Mapping[str, Mapping[str, float]]) -> Bottleneck | None:
    """What stops everyone at once. A learner that trains all the time is not stopped by a slow server."""
    answer_s = min(before.answer_s, after.answer_s)
    if answer_s >= _SLOW_ANSWER_S and not (shares["learner"] and _busy(shares)["training"] >= _HARDLY_WAITS):
        return Bottleneck("Redis", f"everyone waits for Redis: Redis is the bottleneck (it takes {answer_s:.1f} s to answer)")
    if shares["learner"].get("admission", 0.0) >= _ADMITS_NOTHING:
        return Bottleneck("admission", f"everyone waits: the learner admits no samples ({after.gauge('blocked') or 'it does not say why'})")
    lost = _given_up(before, after)
    if lost and shares["learner"].get("scored", 0.0) >= _HARDLY_WAITS:
        line = f"learner waits for scored: {lost} samples were given up and none was trained (`reflux dead list` says why)"
        return Bottleneck("dead letters", line)
    return None


def _given_up(before: Snapshot, after: Snapshot) -> int:
    """How many samples died, if none came through."""
    if before.state is None or after.state is None or after.state.applied > before.state.applied:
        return 0
    return after.state.dead - before.state.dead


def _busy(shares: Mapping[str, Mapping[str, float]]) -> dict[Place, float]:
    busy: dict[Place, float] = {place: 1 - _total(shares[role], _BETWEEN) for role, place in _PLACE_OF.items()}
    busy["publishing"] = max(shares["learner"].get("publication", 0.0), shares["producer"].get("weights", 0.0))
    return busy


def _busiest(shares: Mapping[str, Mapping[str, float]]) -> Place:
    busy = _busy(shares)
    if busy["training"] >= _HARDLY_WAITS:
        return "training"
    redis = max(map(_redis_share, shares.values()))
    if redis >= max(_REDIS_HOLDS, *busy.values()):
        return "Redis"
    return max(busy, key=lambda place: busy[place])


def _redis_share(causes: Mapping[str, float]) -> float:
    """What a worker lost to the server: an overdue answer costs nothing while there is work to do."""
    waits = _total(causes, _BETWEEN)
    return max(causes.get("bus", 0.0), min(causes.get("server", 0.0), waits))


def mean_shares(before: Snapshot, after: Snapshot, role: str, elapsed: float) -> dict[str, float]:
    """cause → share of the time that a worker of the role lost to it, over the workers seen in both snapshots."""
    pairs = [(before.reports[new.name], new) for new in after.of(role) if new.name in before.reports]
    pairs = [(old, new) for old, new in pairs if new.at > old.at]  # without news there is nothing to say
    each = [_shares(old, new, elapsed) for old, new in pairs]
    causes = {cause for shares in each for cause in shares}
    means = {cause: sum(shares.get(cause, 0.0) for shares in each) / len(each) for cause in causes}
    return means | {"": 0.0} if pairs else {}


def _shares(old: Report, new: Report, elapsed: float) -> dict[str, float]:
    """Of one worker. Waits of its tasks overlap one another and its own work; together they cannot exceed the time it did not compute."""
    seconds = new.at - old.at or elapsed
    idle = min(1.0, max(0.0, 1.0 - (new.process_s - old.process_s) / seconds))
    shares = {cause: max(0.0, spent - old.waiting.get(cause, 0.0)) / seconds for cause, spent in new.waiting.items()}
    together = sum(share for cause, share in shares.items() if cause in _BETWEEN)
    scale = min(1.0, idle / together) if together else 1.0
    return {cause: share * scale if cause in _BETWEEN else min(1.0, share) for cause, share in shares.items()}


def _total(shares: Mapping[str, float], causes: frozenset[str]) -> float:
    return min(1.0, sum(share for cause, share in shares.items() if cause in causes))


def _victim(place: Place, shares: Mapping[str, Mapping[str, float]]) -> str:
    """Who loses most by it."""
    if place == "Redis":
        role = max(shares, key=lambda role: _redis_share(shares[role]))
        return f"{_plural(role)} for Redis"
    if place == "training":
        idle = shares["producer"].get("tickets", 0.0)
        return f"producers wait for tickets ({idle:.0%} of the time)" if idle >= 1 - _HARDLY_WAITS else _learner_alone(shares)
    if place == "publishing":
        waits = shares["producer"].get("weights", 0.0) >= shares["learner"].get("publication", 0.0)
        return "producers wait for weights" if waits else "learner waits for the publication"
    return f"learner waits for scored ({shares['learner'].get('scored', 0.0):.0%} of the time)"


def _learner_alone(shares: Mapping[str, Mapping[str, float]]) -> str:
    waits = _total(shares["learner"], _BETWEEN)
    return "the learner never waits" if waits < 0.01 else f"the learner waits only {waits:.0%} of the time"


def _verdict(place: Place) -> str:
    match place:
        case "Redis":
            return "Redis is the bottleneck"
        case "publishing":
            return "publishing weights is the bottleneck"
        case "training":
            return "the learner is the bottleneck"
        case _:
            return f"{_WORKERS[place]} are the bottleneck"


def _evidence(place: Place, shares: Mapping[str, Mapping[str, float]], after: Snapshot) -> str:
    match place:
        case "Redis":
            return f"{max(map(_redis_share, shares.values())):.0%} of the time"
        case "publishing":
            share = max(shares["learner"].get("publication", 0.0), shares["producer"].get("weights", 0.0))
            return f"{share:.0%} of the time"
        case "sampling":
            return f"backlog {after.backlog('tickets')} tickets"
        case "scoring":
            return f"backlog {_fullest(after)}"
        case _:
            return f"backlog {after.backlog('scored')} scored"


def _fullest(after: Snapshot) -> str:
    """The rollouts that wait, and for which teacher if there are several."""
    assert after.state is not None
    topics = {topic: count for topic, count in after.state.backlog.items() if topic.startswith("rollouts:")}
    if len(topics) < 2:
        return f"{after.backlog('rollouts')} rollouts"
    worst = max(topics, key=lambda topic: topics[topic])
    return f"{topics[worst]} rollouts for {worst.removeprefix('rollouts:')}"


def _outside(after: Snapshot) -> Bottleneck | None:
    """What only somebody outside can mend: a full disk, a store that is away."""
    for role in ("learner", "producer", "scorer"):
        for report in after.of(role):
            if why := report.gauges.get("obstacle"):
                return Bottleneck("outside", f"{role} waits: {why}")
    return None


def _missing(after: Snapshot) -> Bottleneck | None:
    """A role that nobody plays, or a teacher that nobody serves though rollouts wait for it."""
    for role in ("scorer", "producer"):
        if not after.of(role):
            return _nobody(role, role, after.backlog(_INPUT[role]))
    assert after.state is not None
    scorers = after.of("scorer")
    served = {report.gauges.get("teacher") for report in scorers if not report.gauges.get("complaint")}
    for topic, waiting in after.state.backlog.items():
        teacher = topic.removeprefix("rollouts:")
        if waiting and teacher != topic and None not in served and teacher not in served:
            said = [r.gauges["complaint"] for r in scorers if r.gauges.get("teacher") == teacher and r.gauges.get("complaint")]
            if said:
                return Bottleneck("scoring", f"learner waits for scored: {waiting} rollouts wait, but {said[0]}")
            return _nobody("scorer", f"scorer for teacher {teacher}", waiting)
    return None


def _nobody(role: str, who: str, waiting: int) -> Bottleneck:
    return Bottleneck(_PLACE_OF[role], f"learner waits for scored: no {who} is there ({waiting} {_INPUT[role]} wait for one)")


def _plural(role: str) -> str:
    return "learner waits" if role == "learner" else f"{role}s wait"
