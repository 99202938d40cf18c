"""What is clamped, clipped, refused."""

import math

import numpy as np
import pytest

from common.errors import Rejected
from common.messages import TeacherScore
from scorers.teachers.verdict import RawScores, judge


def raw(logprobs: list[float], tops: list[list[float]] | None = None, vocabulary: int = 100) -> RawScores:
    values = np.array(logprobs, np.float32)
    if tops is None:
        return RawScores(values, np.full(len(values), -0.1, np.float32), vocabulary)
    top = np.array(tops, np.float32)
    return RawScores(values, top[:, 0], vocabulary, np.zeros(top.shape, np.int32), top)


def the_score(values: RawScores) -> TeacherScore:
    [result] = judge("t", "d", values, [len(values.logprobs)])
    assert isinstance(result, TeacherScore)
    return result


def the_reason(values: RawScores, length: int | None = None) -> str:
    [result] = judge("t", "d", values, [len(values.logprobs) if length is None else length])
    assert isinstance(result, Rejected)
    return result.reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (raw([-1.0, math.nan]), "NaN at response token 1"),
        (raw([math.inf, -1.0]), r"+inf at response token 0"),
        (raw([-1.0, 0.01]), "> 0 at response token 1"),
        (raw([-1.0], [[-0.1, math.nan]]), "NaN at response token 0"),
        (raw([-1.0, -1.0], [[-0.1, -2.0], [0.5, -1.0]]), "> 0 at response token 1"),
        (raw([-4.0, -math.log(100)], [[-0.1, -2.0], [-math.log(100)] * 2]), "uniform distribution at response token 1"),
    ],
)
def test_what_a_broken_teacher_says_is_refused(values: RawScores, reason: str) -> None:
    assert reason in the_reason(values)


def test_a_wrong_length_is_refused() -> None:
    assert "2 log-probabilities for 3 response tokens" in the_reason(raw([-1.0, -1.0]), 3)


def test_values_below_the_floor_are_clamped_and_counted() -> None:
    score = the_score(raw([-1.0, -3e38, -math.inf], [[-0.1, -2e4]] * 3))
    assert score.logprobs.tolist() == [-1.0, -1e4, -1e4]
    assert score.top_logprobs[:, 1].tolist() == [-1e4] * 3
    assert score.clamped == 5


def test_rounding_above_zero_is_zero() -> None:
    score = the_score(raw([5e-6, -1.0], [[5e-6, -9.0], [-0.5, -1.0]]))
    assert score.logprobs.tolist() == [0.0, -1.0]
    assert score.top_logprobs[0, 0] == 0
    assert score.clamped == 0


def test_one_bad_response_does_not_spoil_its_neighbours() -> None:
    values = raw([-1.0, math.nan, -2.0, -3.0])
    first, second, third = judge("t", "d", values, [1, 1, 2])
    assert isinstance(second, Rejected)
    assert first.logprobs.tolist() == [-1.0]
    assert third.logprobs.tolist() == [-2.0, -3.0]


def test_a_certain_row_and_a_nearly_uniform_one_are_fine() -> None:
    nearly = -math.log(100) + 0.01
    assert the_score(raw([0.0, nearly], [[0.0, -50.0], [nearly, -5.0]])).clamped == 0
