from dataclasses import replace

import pytest

from common.bus.base import BusState
from common.pulse import Report
from deploy.bottleneck import bottleneck
from deploy.snapshot import Snapshot

BUSY = {"producer": {}, "scorer": {}, "learner": {}}


def state(**backlog: int) -> BusState:
    return BusState(
        incarnation="x",
        term=1,
        cursor=0,
        live=0,
        applied=0,
        dead=0,
        retried={},
        backlog={topic.replace("__", ":"): count for topic, count in backlog.items()},
        leased={},
        used_bytes=0,
    )


def seen(at: float, waiting: dict[str, dict[str, float]], **backlog: int) -> Snapshot:
    reports = {
        f"{role}-1": Report(role=role, name=f"{role}-1", at=at, waiting=causes, gauges={"step": 3} if role == "learner" else {})
        for role, causes in waiting.items()
    }
    return Snapshot(at, reports, state(**backlog))


def line_after_10_s(waiting: dict[str, dict[str, float]], **backlog: int) -> tuple[str, str]:
    found = bottleneck(seen(100, BUSY), seen(110, BUSY | waiting, **backlog))
    assert found is not None
    return found.place, found.line


def test_slow_scorers_are_named_with_their_backlog() -> None:
    waiting = {"learner": {"scored": 6.0}, "producer": {"tickets": 7.0}, "scorer": {"rollouts": 0.2}}
    place, line = line_after_10_s(waiting, rollouts__t=240, scored=0)
    assert place == "scoring"
    assert line == "learner waits for scored (60% of the time): the scorers are the bottleneck (backlog 240 rollouts)"


def test_of_several_teachers_the_one_with_the_backlog_is_named() -> None:
    waiting = {"learner": {"scored": 6.0}, "producer": {"tickets": 7.0}}
    _, line = line_after_10_s(waiting, rollouts__maths=200, rollouts__code=3)
    assert "200 rollouts for maths" in line


def test_slow_producers_are_named() -> None:
    place, line = line_after_10_s({"learner": {"scored": 6.0}, "scorer": {"rollouts": 7.0}}, tickets=300)
    assert (place, "the producers are the bottleneck (backlog 300 tickets)" in line) == ("sampling", True)


def test_a_learner_that_hardly_ever_waits_is_the_bottleneck() -> None:
    waiting = {"learner": {"scored": 0.5}, "producer": {"tickets": 5.0}, "scorer": {"rollouts": 4.0}}
    place, line = line_after_10_s(waiting, scored=250)
    assert place == "training"
    assert line == "producers wait for tickets (50% of the time): the learner is the bottleneck (backlog 250 scored)"


def test_a_slow_publication_is_named() -> None:
    waiting = {"learner": {"publication": 7.0, "scored": 1.0}, "producer": {"tickets": 8.0}, "scorer": {"rollouts": 8.0}}
    place, line = line_after_10_s(waiting)
    assert (place, line.startswith("learner waits for the publication")) == ("publishing", True)


def test_producers_that_wait_for_weights_name_publishing() -> None:
    waiting = {"learner": {"scored": 8.0}, "producer": {"weights": 400.0}, "scorer": {"rollouts": 8.0}}  # many tickets wait at once
    place, line = line_after_10_s(waiting, tickets=64)
    assert place == "publishing"
    assert line == "producers wait for weights: publishing weights is the bottleneck (100% of the time)"


def test_waits_of_tickets_while_the_engine_computes_do_not_count_as_idleness() -> None:
    before = seen(100, BUSY)
    after = seen(110, BUSY | {"producer": {"weights": 400.0}, "learner": {"scored": 2.5}})
    computing = replace(after.reports["producer-1"], process_s=6.0)
    found = bottleneck(before, replace(after, reports={**after.reports, "producer-1": computing}))
    assert found is not None
    assert found.place != "publishing"


def test_a_slow_server_is_named_whoever_waits_for_it() -> None:
    waiting = {"learner": {"scored": 6.0}, "producer": {"bus": 2.0, "tickets": 4.0}, "scorer": {"bus": 7.0, "rollouts": 2.0}}
    place, line = line_after_10_s(waiting)
    assert (place, line) == ("Redis", "scorers wait for Redis: Redis is the bottleneck (70% of the time)")


def test_a_server_that_answers_slowly_both_times_is_named() -> None:
    before, after = replace(seen(100, BUSY), answer_s=0.8), replace(seen(110, BUSY | {"learner": {"scored": 6.0}}), answer_s=0.6)
    found = bottleneck(before, after)
    assert found is not None
    assert (found.place, "it takes 0.6 s to answer" in found.line) == ("Redis", True)
    once = bottleneck(before, replace(after, answer_s=0.1))
    assert once is not None
    assert once.place == "sampling"


def test_a_slow_server_is_nothing_to_a_learner_that_trains_all_the_time() -> None:
    before, after = replace(seen(100, BUSY), answer_s=0.8), replace(seen(110, BUSY | {"learner": {"server": 9.0}}), answer_s=0.6)
    found = bottleneck(before, after)
    assert found is not None
    assert found.place == "training"


def test_an_overdue_answer_counts_only_for_those_who_have_nothing_else_to_do() -> None:
    computing = {"learner": {"scored": 9.0, "server": 8.0}, "producer": {"tickets": 9.0, "server": 7.5}, "scorer": {"server": 8.0}}
    assert line_after_10_s(computing)[0] == "scoring"
    idle = computing | {"scorer": {"rollouts": 9.0, "server": 7.0}}
    assert line_after_10_s(idle) == ("Redis", "learner waits for Redis: Redis is the bottleneck (80% of the time)")


def test_a_worker_without_news_says_nothing() -> None:
    before, after = seen(100, BUSY), seen(110, BUSY)
    assert bottleneck(before, replace(after, reports=before.reports)) is None


def test_a_teacher_that_nobody_serves_is_named() -> None:
    before, after = seen(100, BUSY), seen(110, BUSY | {"learner": {"scored": 9.0}}, rollouts__code=64, rollouts__maths=2)
    serving = replace(after.reports["scorer-1"], gauges={"teacher": "maths"})
    found = bottleneck(before, replace(after, reports={**after.reports, "scorer-1": serving}))
    assert found is not None
    assert found.line == "learner waits for scored: no scorer for teacher code is there (64 rollouts wait for one)"


def test_a_learner_that_admits_nothing_says_why() -> None:
    before, after = seen(100, BUSY), seen(110, {"producer": {"tickets": 9.0}, "scorer": {"rollouts": 9.0}, "learner": {"admission": 9.0}})
    paused = replace(after.reports["learner-1"], gauges={"step": 3, "blocked": "the run is paused: `reflux resume` goes on"})
    found = bottleneck(before, replace(after, reports={**after.reports, "learner-1": paused}))
    assert found is not None
    assert found.line == "everyone waits: the learner admits no samples (the run is paused: `reflux resume` goes on)"


def test_a_run_whose_samples_all_die_says_so() -> None:
    before, after = seen(100, BUSY), seen(110, {"producer": {}, "scorer": {}, "learner": {"scored": 9.5}})
    dying = replace(after, state=replace(after.state, cursor=40, dead=40))
    found = bottleneck(before, dying)
    assert found is not None
    assert (found.place, "40 samples were given up and none was trained" in found.line) == ("dead letters", True)
    through = bottleneck(before, replace(dying, state=replace(dying.state, cursor=41, applied=1)))
    assert through is not None
    assert through.place != "dead letters"


def test_a_server_that_does_not_answer_is_named() -> None:
    found = bottleneck(seen(100, BUSY), replace(seen(110, BUSY), state=None))
    assert found is not None
    assert (found.place, "does not answer" in found.line) == ("Redis", True)


def test_at_staleness_0_the_stage_that_takes_longest_is_named() -> None:
    waiting = {"learner": {"scored": 7.0}, "producer": {"tickets": 4.0}, "scorer": {"rollouts": 7.5}}
    assert line_after_10_s(waiting)[0] == "sampling"


@pytest.mark.parametrize(("role", "place", "topic"), [("scorer", "scoring", "rollouts__t"), ("producer", "sampling", "tickets")])
def test_a_role_that_nobody_plays_comes_first(role: str, place: str, topic: str) -> None:
    waiting = {"learner": {"scored": 10.0}, "producer": {"bus": 9.0}, "scorer": {"bus": 9.0}}
    before, after = seen(100, waiting), seen(110, {name: causes for name, causes in waiting.items() if name != role}, **{topic: 64})
    found = bottleneck(before, after)
    assert found is not None
    assert (found.place, f"no {role} is there (64 " in found.line) == (place, True)


def test_seconds_before_the_first_snapshot_do_not_count() -> None:
    before = seen(100, BUSY | {"learner": {"scored": 50.0}, "scorer": {"rollouts": 1.0}})
    after = seen(110, BUSY | {"learner": {"scored": 50.0}, "scorer": {"rollouts": 1.0}})
    found = bottleneck(before, after)
    assert found is not None
    assert found.place == "training"


def test_one_slow_scorer_of_two_does_not_hide_that_the_other_is_idle() -> None:
    before, after = seen(100, BUSY), seen(110, BUSY | {"learner": {"scored": 6.0}, "scorer": {"rollouts": 0.0}})
    idle = Report(role="scorer", name="scorer-2", at=110, waiting={"rollouts": 10.0})
    before = Snapshot(before.at, {**before.reports, "scorer-2": Report(role="scorer", name="scorer-2", at=100)}, before.state)
    after = Snapshot(after.at, {**after.reports, "scorer-2": idle}, after.state)
    found = bottleneck(before, after)
    assert found is not None
    assert found.place == "sampling"


def test_without_a_learner_or_a_second_reading_nothing_is_claimed() -> None:
    now = seen(100, BUSY)
    assert bottleneck(now, now) is None
    assert bottleneck(seen(100, {}), seen(110, {"producer": {}, "scorer": {}})) is None
    assert bottleneck(seen(100, {}), seen(110, BUSY)) is None


def test_a_learner_that_still_loads_is_no_bottleneck() -> None:
    loading = Report(role="learner", name="learner-1", at=110)
    after = seen(110, BUSY)
    assert bottleneck(seen(100, BUSY), Snapshot(110, {**after.reports, "learner-1": loading}, after.state)) is None


def test_a_teacher_that_turned_bad_is_what_the_learner_waits_for() -> None:
    after = seen(110, BUSY, rollouts__t=7)
    sick = replace(after.reports["scorer-1"], gauges={"teacher": "t", "complaint": "teacher t gave NaN"})
    found = bottleneck(seen(100, BUSY), replace(after, reports={**after.reports, "scorer-1": sick}))
    assert found is not None
    assert found.line == "learner waits for scored: 7 rollouts wait, but teacher t gave NaN"


def test_what_only_somebody_outside_can_mend_comes_first() -> None:
    before, after = seen(100, BUSY), seen(110, BUSY | {"learner": {"disk": 10.0}})
    reports = {name: replace(one, gauges=one.gauges | {"obstacle": "the disk is full"}) for name, one in after.reports.items()}
    found = bottleneck(before, replace(after, reports={**after.reports, "learner-1": reports["learner-1"]}))
    assert found is not None
    assert (found.place, found.line) == ("outside", "learner waits: the disk is full")


def test_a_server_that_refuses_writes_is_named_although_no_report_is_left() -> None:
    after = seen(110, {"learner": {}})
    found = bottleneck(seen(100, BUSY), replace(after, reports={}, state=replace(after.state, obstacle="its memory is used up")))
    assert found is not None
    assert (found.place, found.line) == ("Redis", "everyone waits for Redis: its memory is used up")
