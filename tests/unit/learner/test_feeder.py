"""The window's arithmetic, and the bound that follows from it."""

import random

import pytest

from common.bus.base import BusState
from learner.feeder import Window


def window(batch=4, staleness=1, steps=100, max_bytes=1000):
    return Window(batch, staleness, steps, max_bytes)


def state(used):
    return BusState("i", 1, 0, 0, 0, 0, {}, {}, {}, used)


def test_at_the_start_the_whole_window_is_admitted():
    assert window().room(published=0, applied=0, live=0) == 8


def test_staleness_zero_admits_one_batch_at_a_time():
    strict = window(staleness=0)
    assert strict.room(published=3, applied=12, live=0) == 4
    assert strict.room(published=3, applied=16, live=0) == 0


def test_nothing_beyond_the_run_is_admitted_and_the_dead_are_replaced():
    short = window(steps=2)
    assert short.room(published=1, applied=4, live=4) == 0
    assert short.room(published=1, applied=4, live=3) == 1


def test_a_batch_settled_ahead_does_not_widen_the_window():
    assert window().room(published=1, applied=8, live=4) == 0


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_strict_order_then_bounds_staleness(staleness):
    chance = random.Random(staleness)
    rule, admitted, applied, step, published, worst = window(staleness=staleness), [], 0, 0, 0, 0
    for _ in range(2000):
        admitted += [published] * max(0, rule.room(published, applied, len(admitted) - applied))
        if chance.random() < 0.5 and len(admitted) - applied >= 4 and step < 100:
            worst = max(worst, *(step - version for version in admitted[applied : applied + 4]))
            applied, step = applied + 4, step + 1
        elif chance.random() < 0.5:
            published = step
    assert step == 100
    assert worst == staleness


def test_a_full_bus_and_a_pause_block_admission():
    assert window().blocked(state(100), paused=False) == ""
    assert "full" in window().blocked(state(950), paused=False)
    assert window().blocked(state(100), paused=True) == "the run is paused: `reflux resume` goes on"
