"""The window's arithmetic, and the bound that follows from it."""

import random

import pytest

from common.bus.base import SCORED, BusState
from learner.feeder import Window


def window(batch=4, staleness=1, steps=100, max_bytes=1000):
    return Window(batch, staleness, steps, max_bytes, largest_sample=10)


def state(used=0, live=0, scored=0):
    return BusState("i", 1, live, live, 0, 0, {}, {SCORED: scored}, {}, used)


def test_at_the_start_the_whole_window_is_admitted():
    assert window().room(published=0, applied=0, state=state(live=0)) == 8


def test_staleness_zero_admits_one_batch_at_a_time():
    strict = window(staleness=0)
    assert strict.room(published=3, applied=12, state=state(live=0)) == 4
    assert strict.room(published=3, applied=16, state=state(live=0)) == 0


def test_nothing_beyond_the_run_is_admitted_and_the_dead_are_replaced():
    short = window(steps=2)
    assert short.room(published=1, applied=4, state=state(live=4)) == 0
    assert short.room(published=1, applied=4, state=state(live=3)) == 1


def test_a_batch_settled_ahead_does_not_widen_the_window():
    assert window().room(published=1, applied=8, state=state(live=4)) == 0


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_strict_order_then_bounds_staleness(staleness):
    chance = random.Random(staleness)
    rule, admitted, applied, step, published, worst = window(staleness=staleness), [], 0, 0, 0, 0
    for _ in range(2000):
        admitted += [published] * max(0, rule.room(published, applied, state(live=len(admitted) - applied)))
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


def test_no_more_is_admitted_than_may_grow_to_the_longest_sample_within_the_memory():
    wide = window(staleness=99)
    assert wide.room(published=0, applied=0, state=state(used=300)) == 70
    assert wide.room(published=0, applied=0, state=state(used=300, live=40)) == 30
    assert wide.room(published=0, applied=0, state=state(used=300, live=40, scored=40)) == 70
    assert wide.room(published=0, applied=0, state=state(used=900, live=40)) < 0


def test_one_batch_is_admitted_in_any_case():
    assert window(staleness=99).room(published=0, applied=0, state=state(used=890, live=1)) == 10
    assert window(batch=20).room(published=0, applied=0, state=state(used=890, live=1)) == 19


@pytest.mark.parametrize("seed", range(3))
def test_samples_that_all_become_as_long_as_any_can_be_stay_within_the_memory(seed):
    chance, base = random.Random(seed), 150
    rule, tickets, scored, most, widest = window(staleness=99), [], 0, 0, 0
    for _ in range(2000):
        used = base + sum(tickets) + 10 * scored
        most, widest = max(most, used), max(widest, len(tickets) + scored)
        match chance.randrange(3):
            case 0 if not rule.blocked(state(used), paused=False):
                tickets += [1] * max(0, rule.room(0, 0, state(used, len(tickets) + scored, scored)))
            case 1 if tickets:
                tickets, scored = tickets[1:], scored + 1
            case 2:
                scored = max(0, scored - chance.randrange(20))
    assert widest > 80
    assert most <= 1000
