"""From scored rollouts to the samples of one optimizer step: pure, and the only guarantee of bounded staleness (P3).

Staleness of a token = steps the learner has done − step of the weights that sampled it, never below 0: a token of a term that has died
keeps its step and is counted as a ghost. Step number n trains weights of step n − 1. A record gives the same samples live and replayed.
Oldest first, by seq. What is beyond `max_staleness`: `mask` trains the other tokens (none left: the sample is sampled again), `retry`
samples it again, `wait` takes the samples in strict order, so that nothing falls behind.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from common.bus.base import Lease
from common.codec import decode
from common.messages import Completion, Ids, Mask, ScoredRollout, StepRecord
from learner.agreement import agreement
from learner.line import Line
from learner.training import TeacherTargets, TrainingSample

Straggler = Literal["mask", "retry", "wait"]


@dataclass(frozen=True, slots=True)
class Held:
    """One scored rollout that this learner leases."""

    lease: Lease
    scored: ScoredRollout

    @property
    def seq(self) -> int:
        """Its number."""
        return self.lease.seq

    @property
    def sampled_at(self) -> int:
        """Step of the oldest weights in it."""
        return min((span.step for span in self.scored.rollout.completion.versions), default=0)


@dataclass(frozen=True, slots=True)
class Formed:
    """What the held samples come to: a batch, if it is complete, and those to be sampled again."""

    batch: Sequence[Held] = ()
    again: Sequence[Held] = ()


@dataclass(frozen=True, slots=True)
class Consumed:
    """How stale the trained tokens of a step are, and what was left out."""

    staleness: Mapping[int, int] = field(default_factory=dict)  # steps -> trained tokens
    masked: int = 0
    ghosts: int = 0
    mixed: int = 0  # samples with more than one version
    tokens: int = 0  # response tokens
    truncated: int = 0  # samples cut off by max_new_tokens
    agreement: Mapping[str, float] = field(default_factory=dict)  # top-k of student and teachers


def form(held: Mapping[int, Held], line: Line, *, size: int, max_staleness: int, straggler: Straggler) -> Formed:
    """The batch of the line's next step out of what is held, none of which may be applied or dead."""
    if straggler == "wait":
        due = line.first(size)
        complete = len(due) == size and all(seq in held for seq in due)
        return Formed(batch=[held[seq] for seq in due] if complete else ())
    usable: list[Held] = []
    again: list[Held] = []
    for seq in sorted(held):
        one = held[seq]
        (again if _hopeless(one, line.step, max_staleness, straggler) else usable).append(one)
        if len(usable) == size:
            return Formed(batch=usable, again=again)
    return Formed(again=again)


def _hopeless(one: Held, step: int, max_staleness: int, straggler: Straggler) -> bool:
    if step - one.sampled_at <= max_staleness:
        return False
    mask_T, _, masked = _trainable(one.scored.rollout.completion, step, max_staleness)
    return straggler == "retry" or (masked > 0 and not mask_T.any())


def _trainable(completion: Completion, step: int, max_staleness: int) -> tuple[Mask, Ids, int]:
    """mask_T, lag_T, and how many tokens staleness alone leaves out."""
    length = len(completion.response_ids)
    mask_T = completion.response_mask
    if mask_T is None:
        mask_T = np.ones(length, np.uint8)
    lags = [max(0, step - span.step) for span in completion.versions]
    lag_T = np.repeat(np.asarray(lags, np.int32), [span.tokens for span in completion.versions])
    if max(lags, default=0) <= max_staleness:
        return mask_T, lag_T, 0
    fresh_T = mask_T * (lag_T <= max_staleness).astype(np.uint8)
    return fresh_T, lag_T, int(np.count_nonzero(mask_T)) - int(np.count_nonzero(fresh_T))


def training_sample(scored: ScoredRollout, step: int, max_staleness: int) -> tuple[TrainingSample, int]:
    """The sample as trained on weights of `step`, and how many of its tokens staleness leaves out."""
    ticket, completion = scored.rollout.ticket, scored.rollout.completion
    mask_T, lag_T, masked = _trainable(completion, step, max_staleness)
    total = sum(share.weight for share in ticket.slip)
    targets = tuple(
        TeacherTargets(score.teacher, share.weight / total, score.logprobs, score.top_ids, score.top_logprobs)
        for share, score in zip(ticket.slip, scored.scores, strict=True)
    )
    sample = TrainingSample(ticket.seq, ticket.prompt_ids, completion.response_ids, completion.logprobs, mask_T, lag_T, targets)
    return sample, masked


def record_of(batch: Sequence[Held], line: Line, max_staleness: int) -> StepRecord:
    """The journal's record of the line's next step."""
    payloads = tuple(one.lease.payload for one in batch)
    stale = (one for one in batch if line.step - one.sampled_at > max_staleness)
    return StepRecord(
        term=line.term,
        step=line.step + 1,
        seqs=tuple(one.seq for one in batch),
        attempts=tuple(one.lease.attempt for one in batch),
        cursor=line.cursor,
        digest=payload_digest(payloads),
        payloads=payloads,
        origins=tuple(f"{one.lease.entry} {one.lease.by}" for one in batch),
        masked_tokens=sum(_trainable(one.scored.rollout.completion, line.step, max_staleness)[2] for one in stale),
    )


def payload_digest(payloads: Sequence[bytes | memoryview]) -> str:
    """SHA-256 over the payloads, in order."""
    total = hashlib.sha256()
    for payload in payloads:
        total.update(payload)
    return total.hexdigest()


def scored_of(record: StepRecord) -> list[ScoredRollout]:
    """The record's rollouts."""
    return [scored for payload in record.payloads if isinstance(scored := decode(payload, ScoredRollout), ScoredRollout)]


def samples_of(record: StepRecord, scored: Sequence[ScoredRollout], max_staleness: int) -> tuple[list[TrainingSample], Consumed]:
    """What the record's step trains on."""
    samples: list[TrainingSample] = []
    staleness: Counter[int] = Counter()
    masked = ghosts = mixed = tokens = 0
    for one in scored:
        sample, left_out = training_sample(one, record.step - 1, max_staleness)
        samples.append(sample)
        masked += left_out
        versions = one.rollout.completion.versions
        tokens += len(sample.response_ids)
        ghosts += sum(span.tokens for span in versions if span.term != record.term)
        mixed += len({span[:2] for span in versions}) > 1
        if len(versions) == 1 and not left_out:
            staleness[max(0, record.step - 1 - versions[0].step)] += sample.trained
        else:
            counts = np.bincount(sample.lag_T[sample.mask_T != 0]).tolist()
            staleness.update({lag: count for lag, count in enumerate(counts) if count})
    truncated = sum(one.rollout.completion.finish_reason == "length" for one in scored)
    return samples, Consumed(dict(staleness), masked, ghosts, mixed, tokens, truncated, agreement(scored))
