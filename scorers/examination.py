"""A teacher is asked again, in the middle of the run, what it was asked at the start: it must say the same (P8).

Catches what single samples cannot tell from bad luck: weights that became NaN or uniform, a server that came back with another model or
another vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import Rejected
from common.messages import Rollout, TeacherScore
from scorers.teachers.base import Teacher

_ANOTHER_MODEL = 0.5
"""Nats; far above what another batch layout or a low precision changes."""


class Examination:
    """`asked` was answered by `answers`, when the teacher was found fit."""

    def __init__(self, name: str, teacher: Teacher, asked: Sequence[Rollout], answers: Sequence[TeacherScore | Rejected]) -> None:
        self._name = name
        self._teacher = teacher
        self._asked = asked
        self._answers = answers

    async def complaint(self) -> str:
        """What is wrong with the teacher now; empty: nothing."""
        if part := await self._teacher.part_complaint():
            return part
        again = await self._teacher.score(self._asked)
        return next(filter(None, (difference(self._name, *pair) for pair in zip(self._answers, again, strict=True))), "")


def difference(name: str, before: TeacherScore | Rejected, now: TeacherScore | Rejected) -> str:
    """Between two answers to one question, where it is more than rounding; empty: none."""
    if isinstance(now, Rejected):
        return "" if isinstance(before, Rejected) else f"{now.reason} (it did not at the start)"
    if isinstance(before, Rejected):
        return ""
    if now.digest != before.digest:
        return f"teacher {name} has other weights than at the start"
    if now.logprobs.shape != before.logprobs.shape:
        return f"teacher {name} gives {len(now.logprobs)} log-probabilities where it gave {len(before.logprobs)} at the start"
    apart = float(np.abs(now.logprobs - before.logprobs).max(initial=0.0))
    if apart <= _ANOTHER_MODEL:
        return ""
    return f"teacher {name} is another model than at the start: its log-probabilities are {apart:.1f} nats apart"
