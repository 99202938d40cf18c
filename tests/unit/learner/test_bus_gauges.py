"""What Prometheus hears of the bus: every topic, the empty ones with an age of 0 instead of the last one's."""

from __future__ import annotations

from common.bus.base import BusState
from learner.ledger import _gauges


def test_a_topic_that_became_empty_has_no_age_left():
    backlog = {"tickets": 0, "rollouts:t": 3}
    state = BusState("i", 1, 9, 3, 5, 1, {}, backlog, {}, 0, oldest_s={"rollouts:t": 1.23456})
    assert _gauges(state) == {
        "backlog:tickets": 0,
        "backlog:rollouts:t": 3,
        "oldest:tickets": 0.0,
        "oldest:rollouts:t": 1.235,
        "ledger:live": 3,
        "ledger:applied": 5,
        "ledger:dead": 1,
    }
