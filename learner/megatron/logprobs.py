"""Log-probabilities of chosen ids straight from hidden states: [N, V] never exists as one tensor.

Guarantee: exact log-softmax at temperature 1 in float32, and its exact gradient, for a vocabulary that may be divided over
tensor-parallel ranks (rank r holds rows r*V/size .. (r+1)*V/size - 1 of the output weight; rows of ids that do not exist
fill up the last ranks and are no part of the softmax). Logits live for one chunk of rows at a time; backward computes them
again from the saved log-sum-exp.

Shapes: N rows, H hidden size, V vocabulary on this rank, M ids asked per row, C rows of one chunk.
With p = softmax(z): d log p_j / d z = 1[j] - p, so a row's logit gradient is scatter(g at ids) - p * sum(g).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Function

CHUNK_ELEMENTS = 1 << 24  # logits alive at once: 64 MiB of float32


def chosen_logprobs(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    ids_NM: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """log p(ids_NM) as float32 [N, M]; ids_NM are global ids (int64), below `vocabulary` where the weight has padding rows. Every rank of
    `group` gets the same result."""
    rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
    parallel, first_id = group if size > 1 else None, rank * weight_VH.shape[0]
    if vocabulary is not None:
        weight_VH = weight_VH[: max(0, vocabulary - first_id)]
    logp_NM: torch.Tensor = _Chosen.apply(hidden_NH, weight_VH, ids_NM, parallel, first_id)  # type: ignore[no-untyped-call]
    return logp_NM


class _Chosen(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        ids_NM: torch.Tensor,
        group: dist.ProcessGroup | None,
        first_id: int,
    ) -> torch.Tensor:
        owned_NM, local_NM = _owned(ids_NM, weight_VH.shape[0], first_id, group)
        picked_NM = hidden_NH.new_empty(ids_NM.shape, dtype=torch.float32)
        lse_N = picked_NM.new_empty(ids_NM.shape[0])
        for rows in _chunks(hidden_NH, weight_VH):
            logits_CV = torch.mm(hidden_NH[rows], weight_VH.T).float()
            lse_N[rows] = torch.logsumexp(logits_CV, -1)
            picked_NM[rows] = logits_CV.gather(1, local_NM[rows])
        if owned_NM is not None:
            picked_NM.mul_(owned_NM)
            lse_N = _combine(picked_NM, lse_N, group)
        ctx.save_for_backward(hidden_NH, weight_VH, local_NM, owned_NM, lse_N)
        ctx.group = group
        return picked_NM - lse_N.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, grad_NM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None]:
        hidden_NH, weight_VH, local_NM, owned_NM, lse_N = ctx.saved_tensors
        total_N = grad_NM.sum(1, keepdim=True).neg_()
        scattered_NM = grad_NM if owned_NM is None else grad_NM * owned_NM
        hidden_grad_NH = torch.empty_like(hidden_NH)
        weight_grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _chunks(hidden_NH, weight_VH):
            logits_CV = torch.mm(hidden_NH[rows], weight_VH.T).float()
            logits_CV.sub_(lse_N[rows].unsqueeze(1)).exp_().mul_(total_N[rows])
            logits_CV.scatter_add_(1, local_NM[rows], scattered_NM[rows])
            flowing_CV = logits_CV.to(hidden_NH.dtype)
            torch.mm(flowing_CV, weight_VH, out=hidden_grad_NH[rows])
            if weight_grad_VH is not None:
                _add_product(weight_grad_VH, flowing_CV.T, hidden_NH[rows])
        if ctx.group is not None:
            dist.all_reduce(hidden_grad_NH, group=ctx.group)
        return hidden_grad_NH, None if weight_grad_VH is None else weight_grad_VH.to(weight_VH.dtype), None, None, None


def _add_product(sum_VH: torch.Tensor, left_VC: torch.Tensor, right_CH: torch.Tensor) -> None:
    """sum += left @ right, in float32; without a second matrix of that size where the factors are float32 too."""
    if left_VC.dtype == sum_VH.dtype:
        sum_VH.addmm_(left_VC, right_CH)
    else:
        sum_VH.add_(torch.mm(left_VC, right_CH))


def _chunks(hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
    for start in range(0, hidden_NH.shape[0], rows):
        yield slice(start, start + rows)


def _owned(
    ids_NM: torch.Tensor, vocabulary: int, first_id: int, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Which ids this rank holds (None: all of them), and their rows in its share of the weight."""
    if group is None:
        return None, ids_NM
    local_NM = ids_NM - first_id
    owned_NM = (local_NM >= 0) & (local_NM < vocabulary)
    return owned_NM, local_NM.where(owned_NM, 0)


def _combine(picked_NM: torch.Tensor, lse_N: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Sum the picked logits over ranks in place; return the log-sum-exp over the whole vocabulary."""
    dist.all_reduce(picked_NM, group=group)
    highest_N = lse_N.clone()
    dist.all_reduce(highest_N, dist.ReduceOp.MAX, group=group)
    sum_N = (lse_N - highest_N).exp_()
    dist.all_reduce(sum_N, group=group)
    return sum_N.log_().add_(highest_N)
