"""Which rollouts are kept for showing while a run grows: those that say most, of steps spread evenly over the run, and of the newest step.

Guarantee: never more steps, rollouts or tokens than the selection allows, however long the run, but always one rollout. The gap
of a token is log π(student) − log π(teacher) of the token that was sampled: averaged over samples it is the reverse KL that is lowered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from common.codec import decode, encode
from common.messages import Floats, ScoredRollout, StepRecord


@dataclass(frozen=True, slots=True)
class Selection:
    """How much may be kept."""

    steps: int = 30
    per_step: int = 4
    tokens: int = 24_000  # of all rollouts together


@dataclass(frozen=True, slots=True)
class Kept:
    """A rollout as it was trained."""

    term: int
    step: int
    scored: ScoredRollout

    @property
    def tokens(self) -> int:
        """Length of the answer."""
        return len(self.scored.rollout.completion.response_ids)

    @property
    def key(self) -> tuple[int, int]:
        """Names it."""
        return self.step, self.scored.rollout.ticket.seq


class Shelf:
    """Takes the records of the surviving line in order. Not thread-safe."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._kept: dict[int, list[Kept]] = {}
        self._stride = 1
        self._per_step = selection.per_step
        self.last_step = 0

    def take(self, records: Iterable[StepRecord]) -> None:
        """Of each step that is kept the rollouts with the largest mean gap."""
        newest: StepRecord | None = None
        for record in records:
            self.last_step = record.step
            newest = None if self._is_kept(record.step) else record
            if newest is None:
                self._put(record)
        if newest is not None:
            self._put(newest)

    def forget(self, after: int) -> None:
        """Steps above `after` are not on the line any more."""
        self._kept = {step: kept for step, kept in self._kept.items() if step <= after}
        self.last_step = min(self.last_step, after)

    def __iter__(self) -> Iterator[Kept]:
        return (each for _, kept in sorted(self._kept.items()) for each in kept)

    def _is_kept(self, step: int) -> bool:
        return step == 1 or step % self._stride == 0

    def _put(self, record: StepRecord) -> None:
        scored = [each for each in map(_scored, record.payloads) if each.scores]
        scored.sort(key=lambda each: float(gap_of(each).mean()), reverse=True)
        self._kept = {step: kept for step, kept in self._kept.items() if self._is_kept(step)}
        if scored:
            self._kept[record.step] = [Kept(record.term, record.step, _copied(each)) for each in scored[: self._per_step]]
        while self._too_much() and (len(self._kept) > 1 or self._per_step > 1):
            self._thin(record.step)

    def _thin(self, newest: int) -> None:
        """Half as many steps; where that is too few already, half as many rollouts of each."""
        if len(self._kept) > 2 or self._per_step == 1:
            self._stride *= 2
            self._kept = {step: kept for step, kept in self._kept.items() if self._is_kept(step) or step == newest}
            if len(self._kept) == 2 and self._per_step == 1:
                self._kept.pop(min(self._kept))
        else:
            self._per_step = max(1, self._per_step // 2)
            self._kept = {step: kept[: self._per_step] for step, kept in self._kept.items()}

    def _too_much(self) -> bool:
        tokens = sum(each.tokens for kept in self._kept.values() for each in kept)
        return len(self._kept) > self._selection.steps + 1 or tokens > self._selection.tokens


def kept_of(record: StepRecord, seq: int) -> Kept | None:
    """One of a record's rollouts."""
    payloads = [payload for each, payload in zip(record.seqs, record.payloads, strict=True) if each == seq]
    return Kept(record.term, record.step, _copied(_scored(payloads[0]))) if payloads else None


def gap_of(scored: ScoredRollout) -> Floats:
    """[T], against the teachers' weighted mean; tokens that the student did not sample have none."""
    completion = scored.rollout.completion
    weights = [share.weight for share in scored.rollout.ticket.slip[: len(scored.scores)]] or [1.0] * len(scored.scores)
    teacher_T = np.average([score.logprobs for score in scored.scores], axis=0, weights=weights)
    gap_T: Floats = (completion.logprobs - teacher_T).astype(np.float32)
    return gap_T if completion.response_mask is None else np.where(completion.response_mask, gap_T, 0).astype(np.float32)


def _scored(payload: bytes | memoryview) -> ScoredRollout:
    scored = decode(payload, ScoredRollout)
    assert isinstance(scored, ScoredRollout)
    return scored


def _copied(scored: ScoredRollout) -> ScoredRollout:
    """With arrays of its own: a view would keep the whole record in memory."""
    again = decode(encode(scored), ScoredRollout)
    assert isinstance(again, ScoredRollout)
    return again
