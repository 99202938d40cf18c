"""RMSNorm (Zhang & Sennrich 2019) for Megatron layers without Transformer Engine.

Guarantee: the maths of Hugging Face's Qwen and Llama norms, and a weight that Megatron's gradient finalisation sums over
tensor-parallel ranks when sequence parallelism divides the tokens (Megatron's own wrapper of torch's norm refuses that).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class RMSNorm(torch.nn.Module):
    """y = x / rms(x) * weight over the last dimension; the constructor has the signature Megatron's specs call."""

    def __init__(self, config: Any, hidden_size: int, eps: float, **_: object) -> None:  # Megatron's TransformerConfig
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._eps = eps
        self._shape = (hidden_size,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x; the mean of squares is taken in float32."""
        return F.rms_norm(x, self._shape, self.weight, self._eps)
