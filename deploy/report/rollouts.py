"""Which rollouts a report shows, token by token: what the student was sure of and the teacher was not.

The gap of a token is log π(student) − log π(teacher) of the token that was sampled: averaged over samples it is the reverse KL that
training lowers. Per step the rollouts with the largest mean gap are chosen, so that the page shows what was learnt last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any  # JSON values, and transformers' tokenizer

import numpy as np

from common.codec import decode
from common.messages import Floats, ScoredRollout, StepRecord

_TOPS = 5  # of the teacher's most likely tokens


@dataclass(frozen=True, slots=True)
class Selection:
    """How much a page may hold."""

    steps: int = 30
    per_step: int = 4
    tokens: int = 24_000  # of all rollouts together


def choose(records: Iterable[StepRecord], last_step: int, selection: Selection) -> Iterator[tuple[StepRecord, ScoredRollout]]:
    """Evenly spaced steps, of each the rollouts with the largest mean gap, until the tokens are used up."""
    wanted = set(np.linspace(1, max(1, last_step), selection.steps).round().astype(int).tolist())
    left = selection.tokens
    for record in records:
        if record.step not in wanted:
            continue
        scored = [each for each in map(_scored, record.payloads) if each.scores]
        scored.sort(key=lambda each: float(_gap(each).mean()), reverse=True)
        for each in scored[: selection.per_step]:
            left -= len(each.rollout.completion.response_ids)
            if left < 0:
                return
            yield record, each


def describe(record: StepRecord, scored: ScoredRollout, tokenizer: Any) -> dict[str, Any]:
    """A rollout as the page reads it; the lists have one entry per token of the answer."""
    ticket, completion = scored.rollout.ticket, scored.rollout.completion
    gap_T = _gap(scored)
    return {
        "seq": ticket.seq,
        "attempt": ticket.attempt,
        "step": record.step,
        "prompt": tokenizer.decode(ticket.prompt_ids, skip_special_tokens=False),
        "finish": completion.finish_reason,
        "tokens": [_text(tokenizer, token) for token in completion.response_ids.tolist()],
        "student": _rounded(completion.logprobs),
        "gap": _rounded(gap_T),
        "mean": round(float(gap_T.mean()), 4),
        "worst": round(float(gap_T.max()), 4),
        "versions": [[span.term, span.step, span.tokens, span.exact] for span in completion.versions],
        "teachers": [
            {
                "name": score.teacher,
                "logp": _rounded(score.logprobs),
                "top": _tops(score.top_ids, score.top_logprobs, tokenizer),
            }
            for score in scored.scores
        ],
    }


def _scored(payload: bytes | memoryview) -> ScoredRollout:
    scored = decode(payload, ScoredRollout)
    assert isinstance(scored, ScoredRollout)
    return scored


def _gap(scored: ScoredRollout) -> Floats:
    """[T], against the teachers' weighted mean; tokens that the student did not sample have none."""
    completion = scored.rollout.completion
    weights = [share.weight for share in scored.rollout.ticket.slip[: len(scored.scores)]] or [1.0] * len(scored.scores)
    teacher_T = np.average([score.logprobs for score in scored.scores], axis=0, weights=weights)
    gap_T: Floats = (completion.logprobs - teacher_T).astype(np.float32)
    return gap_T if completion.response_mask is None else np.where(completion.response_mask, gap_T, 0).astype(np.float32)


def _tops(ids_TK: Any, logp_TK: Any, tokenizer: Any) -> list[list[tuple[str, float]]]:
    if ids_TK is None or logp_TK is None:
        return []
    return [
        [(_text(tokenizer, token), round(logp, 3)) for token, logp in zip(ids, logps, strict=True)]
        for ids, logps in zip(ids_TK[:, :_TOPS].tolist(), logp_TK[:, :_TOPS].tolist(), strict=True)
    ]


def _text(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text


def _rounded(values_T: Floats) -> list[float]:
    return [round(value, 3) for value in values_T.tolist()]
