"""RMSNorm (Zhang & Sennrich 2019) for Megatron layers without Transformer Engine.

Guarantees: the maths of Hugging Face's Qwen and Llama norms, with the mean of squares and the gradients taken in float32; a
weight that Megatron sums over tensor-parallel ranks when sequence parallelism divides the tokens (its own wrapper of torch's
norm refuses that). Backward is written out because torch's is three times slower on a CPU.

With x̂ = x / rms(x) and g = dy * w:  dw = Σ dy * x̂,  dx = (g - x̂ * mean(g * x̂)) / rms(x).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function


class RMSNorm(torch.nn.Module):
    """y = x / rms(x) * weight over the last dimension; the constructor has the signature Megatron's specs call."""

    def __init__(self, config: Any, hidden_size: int, eps: float, **_: object) -> None:  # Megatron's TransformerConfig
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x."""
        y: torch.Tensor = _RMSNorm.apply(x, self.weight, self._eps)  # type: ignore[no-untyped-call]
        return y


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        saved, weight = ctx.saved_tensors
        x, w, dy_32 = saved.float(), weight.float(), dy.float()
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = square.div_(x.shape[-1]).add_(ctx.eps).rsqrt_()
        unit = x * inverse
        weighted = dy_32 * unit
        mean = torch.mv(weighted.flatten(0, -2), w).div_(x.shape[-1]).view(inverse.shape)
        dx = (dy_32 * w).addcmul_(unit, mean, value=-1).mul_(inverse)
        return dx.to(saved.dtype), weighted.flatten(0, -2).sum(0).to(weight.dtype), None
