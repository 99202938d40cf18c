from common.pulse import Report
from common.service import LONG_WAIT_S, LongWaits


def report(at: float, **waiting: float) -> Report:
    return Report(role="scorer", name="scorer-1", at=at, waiting=waiting)


def test_a_wait_that_lasts_is_news_once() -> None:
    waits, step = LongWaits(), LONG_WAIT_S
    told = [waits.news(report(n * step, rollouts=n * step)) for n in range(4)]
    assert told == ["", "rollouts", "", ""]


def test_a_worker_that_works_in_between_does_not_wait_for_long() -> None:
    waits, step = LongWaits(), LONG_WAIT_S
    assert [waits.news(report(n * step, rollouts=0.8 * n * step)) for n in range(3)] == ["", "", ""]


def test_another_cause_and_a_wait_that_comes_again_are_news() -> None:
    waits, step = LongWaits(), LONG_WAIT_S
    seconds = [{}, {"tickets": 1}, {"tickets": 1, "weights": 1}, {"tickets": 1, "weights": 1}, {"tickets": 1, "weights": 2}]
    told = [waits.news(report(n * step, **{cause: count * step for cause, count in at.items()})) for n, at in enumerate(seconds)]
    assert told == ["", "tickets", "weights", "", "weights"]


def test_nothing_is_said_before_the_time_is_up() -> None:
    waits = LongWaits()
    assert [waits.news(report(at, rollouts=at)) for at in (0.0, LONG_WAIT_S / 2, LONG_WAIT_S * 0.9)] == ["", "", ""]
