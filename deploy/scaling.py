"""From what a run shows of itself to how many scorers each teacher has: the autoscaling policy, applied.

Guarantee: a decision is made at most once per look at the run, and only on what two looks say that lie far enough apart; where the server
does not answer, or the learner has not begun, everything stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from common.bus.base import rollouts
from common.config import RunConfig
from common.pulse import Report
from deploy.autoscale import Bounds, Decision, Sight, decide
from deploy.bottleneck import mean_shares
from deploy.roles import RoleSpec, role_specs
from deploy.snapshot import Snapshot

_APART_S = 3.0


def sight_of(before: Snapshot, after: Snapshot, teacher: str) -> Sight | None:
    """None where the two say nothing."""
    elapsed = after.at - before.at
    if elapsed < _APART_S or after.state is None or after.gauge("step") is None:
        return None
    learner = mean_shares(before, after, "learner", elapsed)
    if not learner:
        return None
    topic = rollouts(teacher)
    working = [report for report in after.of("scorer") if report.gauges.get("teacher") == teacher and "rollouts" in report.waiting]
    pairs = [(before.reports[new.name], new) for new in working if new.name in before.reports]
    pairs = [(old, new) for old, new in pairs if new.at > old.at]
    return Sight(
        at=after.at,
        oldest_s=after.state.oldest_s.get(topic, 0.0),
        backlog=after.state.backlog.get(topic, 0),
        rate=sum(_per_second(old, new, _scored) for old, new in pairs),
        busy=sum(1 - min(1.0, _per_second(old, new, _waited)) for old, new in pairs) / max(1, len(pairs)),
        learner_idle=min(1.0, learner.get("scored", 0.0)),
        up=len(working),
    )


def _per_second(old: Report, new: Report, value: Callable[[Report], float]) -> float:
    return max(0.0, value(new) - value(old)) / (new.at - old.at)


def _scored(report: Report) -> float:
    return report.counters.get("samples", 0.0)


def _waited(report: Report) -> float:
    return report.waiting.get("rollouts", 0.0)


class Scaling:
    """`specs` is who is wanted now. `looks` gives an older and the newest look at the run, `say` is told of every change."""

    def __init__(self, *, config: RunConfig, looks: Callable[[], tuple[Snapshot, Snapshot]], say: Callable[[str], None]) -> None:
        section = config.cluster
        self._config = config
        self._looks = looks
        self._say = say
        self._bounds = Bounds(section.scorers_min, section.scorers_max, section.scale_age_s, section.scale_cool_down_s)
        first = min(section.scorers_max, max(section.scorers_min, config.scorer.count))
        self._decisions = dict.fromkeys(config.teachers, Decision(first, looks()[1].at))
        self._seen_at = 0.0

    def specs(self) -> Sequence[RoleSpec]:
        """See Supervisor."""
        before, after = self._looks()
        if after.at > self._seen_at:
            self._seen_at = after.at
            for teacher, decision in self._decisions.items():
                sight = sight_of(before, after, teacher)
                if sight is not None:
                    self._decisions[teacher] = self._told(teacher, decision, sight)
        return role_specs(self._config, {teacher: decision.count for teacher, decision in self._decisions.items()})

    def _told(self, teacher: str, before: Decision, sight: Sight) -> Decision:
        decision = decide(self._bounds, sight, before)
        if decision.count != before.count:
            self._say(f"teacher {teacher} has {decision.count} scorers from now on, not {before.count}: {decision.why}")
        return replace(decision, why="")


def wanted(
    config: RunConfig,
    looks: Callable[[], tuple[Snapshot, Snapshot]],
    say: Callable[[str], None],
    *,
    servers: Sequence[RoleSpec] | None,
) -> Callable[[], Sequence[RoleSpec]]:
    """As many scorers as are asked for, or, on a cluster where cluster.scorers_max says so, as are needed; with its servers, which are
    None on this machine."""
    if servers is not None and config.cluster.scorers_max:
        scaling = Scaling(config=config, looks=looks, say=say)
        return lambda: [*servers, *scaling.specs()]
    specs = [*(servers or ()), *role_specs(config)]
    return lambda: specs
