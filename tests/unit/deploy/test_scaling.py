"""What two looks at a run say to the autoscaling policy, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.bus.base import BusState
from common.config import parse_config
from common.pulse import Report
from deploy.scaling import Scaling, sight_of, wanted
from deploy.snapshot import Snapshot

CONFIG = parse_config(
    {
        "run": {"name": "r"},
        "model": {"student": "s"},
        "teachers": {"t": {"path": "t"}},
        "data": {"prompts": str(Path("p.jsonl"))},
        "evaluation": {"prompts": 0},
        "cluster": {"scorers_min": 2, "scorers_max": 4, "scale_age_s": 5, "scale_cool_down_s": 30},
    }
)
STATE = BusState("x", 1, 0, 0, 0, 0, {}, {"rollouts:t": 300}, {}, 0, oldest_s={"rollouts:t": 20.0})


def report(role: str, name: str, at: float, *, waited: float, samples: float = 0.0) -> Report:
    cause = "scored" if role == "learner" else "rollouts"
    gauges = {"step": 3} if role == "learner" else {"teacher": "t"}
    return Report(role=role, name=name, at=at, waiting={cause: waited}, counters={"samples": samples}, gauges=gauges)


def look(at: float, *, learner_waited: float = 0.0, scorers: int = 2, state: BusState | None = STATE, idle: float = 0.0) -> Snapshot:
    """Each scorer scores ten a second."""
    reports = [report("scorer", f"scorer-{n}", at, waited=idle * at, samples=10 * at) for n in range(scorers)]
    reports.append(report("learner", "learner-1", at, waited=learner_waited))
    return Snapshot(at, {one.name: one for one in reports}, state)


def test_two_looks_say_age_backlog_rate_and_who_is_idle() -> None:
    sight = sight_of(look(100), look(110, learner_waited=4.0), "t")
    assert sight is not None
    assert (sight.oldest_s, sight.backlog, round(sight.rate), sight.busy, sight.up) == (20.0, 300, 20, 1.0, 2)
    assert round(sight.learner_idle, 6) == 0.4
    assert (rested := sight_of(look(100, idle=0.25), look(110, idle=0.25), "t"))
    assert rested.busy == 0.75


def test_a_teacher_sees_its_own_scorers_only() -> None:
    before, after = look(100), look(110)
    reports = {name: replace(one, gauges={"teacher": "u"}) if name == "scorer-1" else one for name, one in after.reports.items()}
    sight = sight_of(before, replace(after, reports=reports), "t")
    assert sight is not None
    assert (sight.up, round(sight.rate)) == (1, 10)


def test_nothing_is_said_by_looks_too_close_together_a_silent_server_or_a_learner_that_has_not_begun() -> None:
    assert sight_of(look(100), look(101), "t") is None
    assert sight_of(look(100), look(110, state=None), "t") is None
    quiet = look(110)
    assert sight_of(look(100), replace(quiet, reports={n: r for n, r in quiet.reports.items() if r.role == "scorer"}), "t") is None


def test_a_backlog_brings_scorers_once_per_cool_down_and_says_so() -> None:
    looks, said = [look(0), look(0)], list[str]()
    scaling = Scaling(config=CONFIG, looks=lambda: (looks[0], looks[1]), say=said.append)
    assert [spec.name for spec in scaling.specs()] == ["learner-0", "producer-0", "scorer-0", "scorer-1"]  # scorers_min
    looks[:] = [look(20), look(25, learner_waited=5.0)]
    assert len(scaling.specs()) == 4  # cools down
    looks[:] = [look(30), look(35, learner_waited=5.0)]
    assert [spec.name for spec in scaling.specs()][-2:] == ["scorer-2", "scorer-3"]
    assert said == ["teacher t has 4 scorers from now on, not 2: rollouts wait 20 s and the learner is idle 100% of the time"]
    looks[:] = [look(70, scorers=4), look(75, scorers=4, learner_waited=5.0)]
    assert len(scaling.specs()) == 6  # scorers_max


def test_without_bounds_or_off_the_cluster_there_are_as_many_as_the_configuration_says() -> None:
    pair = look(0), look(0)
    assert len(wanted(CONFIG, lambda: pair, print, servers=None)()) == 3
    unbounded = CONFIG.model_copy(update={"cluster": CONFIG.cluster.model_copy(update={"scorers_max": 0})})
    assert len(wanted(unbounded, lambda: pair, print, servers=())()) == 3
    assert len(wanted(CONFIG, lambda: pair, print, servers=())()) == 4
