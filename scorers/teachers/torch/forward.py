"""From right-padded ids to the log-probabilities of the response tokens, without ever holding [tokens, vocabulary] as a whole.

B sequences, L padded length, R response tokens of all sequences in order, K top ids, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.messages import Rollout
from scorers.teachers.torch.loading import CausalModel
from scorers.teachers.verdict import RawScores

_CHUNK_ELEMENTS = 1 << 22  # of [rows, V]: 16 MiB of float32


@torch.inference_mode()
def response_scores(model: CausalModel, rollouts: Sequence[Rollout], top_k: int, top_vocabulary: int) -> RawScores:
    """Scores of all response tokens, one rollout after the other.

    Log-probabilities are over the model's whole vocabulary; top ids are below `top_vocabulary` (what the student can express).
    """
    ids_BL, rows_R, targets_R = _layout(rollouts)
    hidden_RH = model.hidden(torch.from_numpy(ids_BL).to(model.device), torch.from_numpy(rows_R).to(model.device))
    targets = torch.from_numpy(targets_R).to(model.device)
    size = max(1, _CHUNK_ELEMENTS // model.vocabulary)
    parts = [
        _chunk_scores(model, hidden, target, top_k, top_vocabulary)
        for hidden, target in zip(torch.split(hidden_RH, size), torch.split(targets, size), strict=True)
    ]
    logp_R, peak_R, ids_RK, tops_RK = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    if not top_k:
        return RawScores(logp_R, peak_R, model.vocabulary)
    return RawScores(logp_R, peak_R, model.vocabulary, ids_RK, tops_RK)


def _chunk_scores(model: CausalModel, hidden_CH: Tensor, target_C: Tensor, top_k: int, top_vocabulary: int) -> tuple[Tensor, ...]:
    logp_CV = torch.log_softmax(model.head(hidden_CH), dim=-1, dtype=torch.float32)
    logp_C = logp_CV.gather(1, target_C[:, None]).squeeze(1)
    tops_CK, ids_CK = logp_CV[:, :top_vocabulary].topk(min(top_k, top_vocabulary), dim=-1)
    whole = top_k and top_vocabulary == model.vocabulary
    peak_C = tops_CK[:, 0] if whole else logp_CV.amax(-1)
    return logp_C, peak_C, ids_CK.int(), tops_CK


def _layout(rollouts: Sequence[Rollout]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padded ids [B, L], and for every response token the flat position that predicts it and its id."""
    pairs = [(rollout.ticket.prompt_ids, rollout.completion.response_ids) for rollout in rollouts]
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    ids_BL = np.zeros((len(pairs), width), np.int64)
    rows = []
    for index, (prompt, response) in enumerate(pairs):
        behind = len(prompt) + len(response)
        ids_BL[index, : len(prompt)] = prompt
        ids_BL[index, len(prompt) : behind] = response
        first = index * width + len(prompt) - 1
        rows.append(np.arange(first, first + len(response)))
    targets = np.concatenate([response for _, response in pairs]).astype(np.int64)
    return ids_BL, np.concatenate(rows), targets
