"""What a batch is made of, and how stale it may be."""

import numpy as np
import pytest
from learner_fakes import record_from, scored_rollout

from common.bus.base import SCORED, Lease
from common.codec import encode
from common.messages import TeacherShare
from learner.batch import Held, form, payload_digest, record_of, samples_of, scored_of, training_sample
from learner.line import Line


def held_of(*rollouts):
    held = {}
    for scored in rollouts:
        ticket = scored.rollout.ticket
        held[ticket.seq] = Held(Lease(SCORED, f"{ticket.seq}-0", ticket.seq, ticket.attempt, encode(scored), 1), scored)
    return held


def formed(held, line, size=2, max_staleness=1, straggler="mask"):
    result = form(held, line, size=size, max_staleness=max_staleness, straggler=straggler)
    return [one.seq for one in result.batch], [one.seq for one in result.again]


def test_the_oldest_come_first_and_an_incomplete_batch_waits():
    held = held_of(*(scored_rollout(seq) for seq in (7, 3, 5)))
    assert formed(held, Line(cursor=9)) == ([3, 5], [])
    assert formed(held, Line(cursor=9), size=4) == ([], [])


def test_a_sample_whose_tokens_are_all_too_old_is_sampled_again_even_before_a_batch_is_full():
    held = held_of(scored_rollout(0, [(1, 0, 4)]), scored_rollout(1, [(1, 3, 4)]))
    assert formed(held, Line(step=3, cursor=9)) == ([], [0])


def test_mask_keeps_a_sample_with_some_fresh_tokens_and_retry_does_not():
    mixed = scored_rollout(0, [(1, 0, 3), (1, 3, 2)])
    held = held_of(mixed, scored_rollout(1, [(1, 3, 4)]))
    assert formed(held, Line(step=3, cursor=9)) == ([0, 1], [])
    assert formed(held, Line(step=3, cursor=9), straggler="retry") == ([], [0])


def test_wait_takes_samples_in_strict_order_but_not_the_dead():
    line = Line(cursor=5)
    held = held_of(scored_rollout(1), scored_rollout(2), scored_rollout(3))
    assert formed(held, line, straggler="wait") == ([], [])
    line.bury({0: "poison"})
    assert formed(held, line, straggler="wait") == ([1, 2], [])


def test_staleness_is_counted_by_token_and_masked_beyond_the_bound():
    sample, masked = training_sample(scored_rollout(0, [(1, 0, 3), (1, 4, 2)]), step=4, max_staleness=2)
    assert sample.lag_T.tolist() == [4, 4, 4, 0, 0]
    assert sample.mask_T.tolist() == [0, 0, 0, 1, 1]
    assert masked == 3


def test_a_token_of_a_dead_term_is_never_younger_than_now():
    sample, masked = training_sample(scored_rollout(0, [(1, 9, 3)]), step=4, max_staleness=2)
    assert sample.lag_T.tolist() == [0, 0, 0]
    assert masked == 0


def test_teacher_weights_sum_to_one():
    drawn = scored_rollout(0, teachers=("a", "b"))
    ticket = drawn.rollout.ticket._replace(slip=(TeacherShare("a", 1.0), TeacherShare("b", 3.0)))
    scored = drawn._replace(rollout=drawn.rollout._replace(ticket=ticket))
    sample, _ = training_sample(scored, 0, 0)
    assert [(one.teacher, one.weight) for one in sample.targets] == [("a", 0.25), ("b", 0.75)]


def test_a_record_gives_the_same_samples_again():
    line = Line(term=2, step=4, cursor=9)
    held = held_of(scored_rollout(0, [(1, 1, 3), (2, 4, 1)]), scored_rollout(1, [(2, 3, 4)]))
    record = record_of(list(held.values()), line, max_staleness=2)
    assert (record.step, record.masked_tokens, record.cursor) == (5, 3, 9)
    assert record.digest == payload_digest(record.payloads)
    live, consumed = samples_of(record, [one.scored for one in held.values()], 2)
    again, consumed_again = samples_of(record, scored_of(record), 2)
    assert consumed == consumed_again
    assert (consumed.masked, consumed.ghosts, consumed.mixed, dict(consumed.staleness)) == (3, 3, 1, {0: 1, 1: 4})
    for one, other in zip(live, again, strict=True):
        assert np.array_equal(one.mask_T, other.mask_T)
        assert np.array_equal(one.lag_T, other.lag_T)
        assert np.array_equal(one.response_ids, other.response_ids)


@pytest.mark.parametrize("spans", [((1, 0, 4),), ((1, 0, 2), (1, 1, 2))])
def test_the_histogram_counts_the_trained_tokens(spans):
    record = record_from(1, 3, [0, 1], spans=spans)
    samples, consumed = samples_of(record, scored_of(record), 1)
    assert sum(consumed.staleness.values()) == sum(sample.trained for sample in samples)
    assert max(consumed.staleness, default=0) <= 1
