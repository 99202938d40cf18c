"""Selecting rows of a tensor with a gradient that costs one copy.

Guarantee: the same values and gradients as index_select, for indices that name no row twice or whose repetitions get no
gradient; torch's own backward adds row by row because it cannot know that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function


def take_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x [N, ...], index [R] without repetition -> [R, ...]; rows not taken get a gradient of zero."""
    taken: torch.Tensor = _Take.apply(x, index)  # type: ignore[no-untyped-call]
    return taken


def spread_rows(x: torch.Tensor, source: torch.Tensor, home: torch.Tensor) -> torch.Tensor:
    """x [N, ...], source [R] -> [R, ...]; the gradient of row n is that of the one place home[n] that counts."""
    spread: torch.Tensor = _Spread.apply(x, source, home)  # type: ignore[no-untyped-call]
    return spread


class _Take(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, index, grad), None


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, source: torch.Tensor, home: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(home)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (home,) = ctx.saved_tensors
        return grad.index_select(0, home), None, None
