"""The seam to whatever holds a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from common.errors import Rejected
from common.messages import Rollout, TeacherScore


class Teacher(Protocol):
    """Scores responses under the teacher, at temperature 1 over the full vocabulary."""

    @property
    def digest(self) -> str:
        """Of the teacher's weights; travels with every score."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScore | Rejected]:
        """One result per rollout, in order. A Rejected carries the reason (NaN, +inf, > 0, uniform rows, wrong length)."""

    async def part_complaint(self) -> str:
        """Asks each of its servers by itself: what was wrong with those that are not asked any more from now on; empty: nothing."""

    async def aclose(self) -> None:
        """Frees the teacher."""
