"""Draws one token per row and says how likely it was: the log-probability is that of the distribution really sampled.

That distribution is softmax(logits / temperature), cut to the top_k most likely ids, then to the smallest set of them whose mass
reaches top_p, and renormalised. Temperature 0 is greedy: a point mass, so its log-probability is 0.

Letters: N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rows of one batch ask for; None where no row differs from the model's own distribution."""

    scale: Tensor | None  # [N, 1] 1 / temperature
    top_p: Tensor | None = None  # [N, 1]; both or neither
    top_k: Tensor | None = None  # [N, 1] ≥ 1


PLAIN = Shape(None)


def draw(logits_NV: Tensor, uniform_N: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Inverse CDF on one float64 uniform per row; returns ids [N] int64 and log-probabilities [N] float32."""
    logp_NV = _logp(logits_NV, shape)
    cdf_NV = torch.cumsum(logp_NV.exp(), dim=-1, dtype=torch.float64)
    target_N1 = cdf_NV[:, -1:] * uniform_N[:, None]
    id_N1 = torch.searchsorted(cdf_NV, target_N1, right=True)
    return id_N1.squeeze(1), logp_NV.gather(1, id_N1).squeeze(1)


def likeliest(logits_NV: Tensor, shape: Shape, count: int) -> tuple[Tensor, Tensor]:
    """Ids [N, K] int64 and log-probabilities [N, K] float32 of the `count` most likely tokens, best first."""
    logp_NK, id_NK = torch.topk(_logp(logits_NV, shape), min(count, logits_NV.shape[1]), dim=-1)
    return id_NK, logp_NK


def _logp(logits_NV: Tensor, shape: Shape) -> Tensor:
    """Of the distribution that is sampled."""
    scaled_NV = logits_NV.float()
    if shape.scale is not None:
        scaled_NV = scaled_NV * shape.scale
    if shape.top_p is not None and shape.top_k is not None:
        scaled_NV = _cut(scaled_NV, shape.top_p, shape.top_k)
    return torch.log_softmax(scaled_NV, dim=-1)


def _cut(scaled_NV: Tensor, top_p_N1: Tensor, top_k_N1: Tensor) -> Tensor:
    """-inf outside top_k and top_p; of equal logits the lower id ranks first."""
    sorted_NV, order_NV = torch.sort(scaled_NV, dim=-1, descending=True, stable=True)
    rank_V = torch.arange(scaled_NV.shape[1], device=scaled_NV.device)
    beyond_k_NV = rank_V >= top_k_N1
    p_NV = torch.softmax(sorted_NV.masked_fill(beyond_k_NV, -torch.inf), dim=-1)
    before_NV = torch.cumsum(p_NV, dim=-1) - p_NV  # mass of what ranks higher
    beyond_NV = beyond_k_NV | ((before_NV >= top_p_N1) & (rank_V > 0))
    return scaled_NV.masked_fill(torch.zeros_like(beyond_NV).scatter(1, order_NV, beyond_NV), -torch.inf)
