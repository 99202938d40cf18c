"""Top-k agreement comes from what is on record; what is not there is left out."""

from __future__ import annotations

import numpy as np
import pytest

from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, TeacherScore, TeacherShare, Ticket, Version
from learner.agreement import agreement

TEACHER = np.array([[1, 2], [3, 4], [5, 6]], np.int32)


def scored(own: list[list[int]] | None = None, mask: list[int] | None = None, teacher: np.ndarray | None = TEACHER) -> ScoredRollout:
    ticket = Ticket(0, 0, "p", np.array([9], np.int32), Sampling(1.0, 3, ()), (TeacherShare("t", 1.0),), Version(1, 0))
    completion = Completion(np.array([1, 9, 6], np.int32), np.zeros(3, np.float32), (Span(1, 0, 3, True),), "stop")
    if own is not None:
        completion = completion._replace(top_ids=np.array(own, np.int32), top_logprobs=np.zeros((3, len(own[0])), np.float32))
    if mask is not None:
        completion = completion._replace(response_mask=np.array(mask, np.uint8))
    logprobs = None if teacher is None else np.zeros(teacher.shape, np.float32)
    return ScoredRollout(Rollout(ticket, completion), (TeacherScore("t", "d", np.zeros(3, np.float32), teacher, logprobs),))


def test_a_sampled_token_counts_where_the_teacher_named_it():
    assert agreement([scored()]) == {"sampled_in_top_k": pytest.approx(2 / 3)}


def test_the_overlap_compares_as_many_of_the_students_as_the_teacher_gave():
    found = agreement([scored(own=[[2, 1, 7], [4, 8, 3], [7, 8, 5]])])
    assert found["top_k_overlap"] == pytest.approx(3 / 6)


def test_tokens_that_the_student_did_not_sample_do_not_count():
    assert agreement([scored(mask=[1, 0, 1])]) == {"sampled_in_top_k": 1.0}


def test_what_was_not_recorded_is_left_out():
    assert agreement([scored(teacher=None)]) == {}
    assert agreement([]) == {}
