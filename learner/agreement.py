"""How far the ids that the student samples are those that its teachers think likely: from what is on record, a few samples a step.

Guarantee: what was not recorded is left out, never a zero. Shapes: T response tokens, K a teacher's top-k, S the student's recorded top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.messages import Completion, Ids, ScoredRollout

_SAMPLES = 8
_TOKENS = 256
"""Looked at of a step's samples, and of an answer: a mean over so many is close enough, and costs nothing that a step would feel."""


def agreement(scored: Sequence[ScoredRollout]) -> Mapping[str, float]:
    """`sampled_in_top_k`: share of sampled tokens among a teacher's K; `top_k_overlap`: share of the first min(S, K) student's ids that
    are among the teacher's as many."""
    looked = [(one.rollout.completion, score.top_ids) for one in scored[:_SAMPLES] for score in one.scores]
    pairs = [(completion, top_TK[:_TOKENS]) for completion, top_TK in looked if top_TK is not None and top_TK.size]
    recorded = [(completion, completion.top_ids[:_TOKENS], top_TK) for completion, top_TK in pairs if completion.top_ids is not None]
    found = {
        "sampled_in_top_k": [_hits(completion.response_ids[:_TOKENS, None], top_TK, completion) for completion, top_TK in pairs],
        "top_k_overlap": [_overlap(own_TS, top_TK, completion) for completion, own_TS, top_TK in recorded],
    }
    return {name: sum(hits for hits, _ in each) / total for name, each in found.items() if (total := sum(size for _, size in each))}


def _overlap(own_TS: Ids, top_TK: Ids, completion: Completion) -> tuple[int, int]:
    width = min(own_TS.shape[1], top_TK.shape[1])
    return _hits(own_TS[:, :width], top_TK[:, :width], completion)


def _hits(own_TS: Ids, top_TK: Ids, completion: Completion) -> tuple[int, int]:
    """How many of `own` are in `top`, and of how many; tokens that the student did not sample do not count."""
    if completion.response_mask is not None:
        sampled_T = completion.response_mask[:_TOKENS] != 0
        own_TS, top_TK = own_TS[sampled_T], top_TK[sampled_T]
    return int(np.count_nonzero((own_TS[:, :, None] == top_TK[:, None, :]).any(-1))), own_TS.size
