"""Turns a teacher's raw numbers into a score, or says why the sample must not be trained on (invariant P8); never a silent zero.

Below −1e4 is clamped and counted. NaN, +inf, a positive log-probability and a uniform row are refused: they come from a broken or misloaded
teacher. Positive by no more than rounding is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import Rejected
from common.messages import Floats, Ids, TeacherScore

FLOOR = np.float32(-1e4)
ROUNDING = 1e-5
_UNIFORM_WITHIN = 1e-4  # of −log V, in nats


@dataclass(frozen=True, slots=True)
class RawScores:
    """What a teacher computed for R response tokens."""

    logprobs: Floats  # [R]
    peaks: Floats  # [R] the largest log-probability of each row: −log V exactly where the row is uniform
    vocabulary: int  # V
    top_ids: Ids | None = None  # [R, K]
    top_logprobs: Floats | None = None  # [R, K]

    def rows(self, start: int, stop: int) -> RawScores:
        """Those of one response."""
        ids = None if self.top_ids is None else self.top_ids[start:stop]
        tops = None if self.top_logprobs is None else self.top_logprobs[start:stop]
        return RawScores(self.logprobs[start:stop], self.peaks[start:stop], self.vocabulary, ids, tops)

    @property
    def uniform(self) -> npt.NDArray[np.bool_]:
        """[R] rows that say nothing."""
        return self.peaks <= _UNIFORM_WITHIN - math.log(self.vocabulary)

    @property
    def clean(self) -> bool:
        """Nothing to clamp, clip or refuse (a NaN makes every comparison false)."""
        values = (self.logprobs, self.peaks, self.top_logprobs)
        return all(v is None or not v.size or bool(v.max() <= 0 and v.min() >= FLOOR) for v in values) and not self.uniform.any()


def judge(teacher: str, digest: str, raw: RawScores, lengths: Sequence[int]) -> list[TeacherScore | Rejected]:
    """One score per response; `raw` holds them one after the other."""
    clean = raw.clean
    results: list[TeacherScore | Rejected] = []
    start = 0
    for length in lengths:
        part = raw.rows(start, start + length)
        start += length
        if clean and len(part.logprobs) == length:
            results.append(TeacherScore(teacher, digest, part.logprobs, part.top_ids, part.top_logprobs))
        else:
            results.append(_judge_one(teacher, digest, part, length))
    return results


def _judge_one(teacher: str, digest: str, raw: RawScores, length: int) -> TeacherScore | Rejected:
    if len(raw.logprobs) != length:
        return Rejected(f"teacher {teacher} gave {len(raw.logprobs)} log-probabilities for {length} response tokens")
    reason = _refusal(raw)
    if reason is not None:
        return Rejected(f"teacher {teacher} gave {reason}")
    logprobs, clamped = _clamp(raw.logprobs)
    if raw.top_logprobs is None:
        return TeacherScore(teacher, digest, logprobs, clamped=clamped)
    tops, more = _clamp(raw.top_logprobs)
    return TeacherScore(teacher, digest, logprobs, raw.top_ids, tops, clamped + more)


def _refusal(raw: RawScores) -> str | None:
    for values in (raw.logprobs, raw.peaks, raw.top_logprobs):
        if values is None:
            continue
        for what, wrong in (
            ("NaN", np.isnan(values)),
            ("+inf", np.isposinf(values)),
            ("a log-probability > 0", values > ROUNDING),
        ):
            if wrong.any():
                return f"{what} at response token {_first(wrong)}"
    if raw.uniform.any():
        return f"a uniform distribution at response token {_first(raw.uniform)}: it looks misloaded"
    return None


def _first(flags: npt.NDArray[np.bool_]) -> int:
    return int(np.argwhere(flags)[0][0])


def _clamp(values: Floats) -> tuple[Floats, int]:
    return np.clip(values, FLOOR, np.float32(0)), int(np.count_nonzero(values < FLOOR))
