"""The gated activation of Qwen and Llama (Shazeer 2020) for Megatron layers without Transformer Engine.

Guarantee: silu(gate) * up on the last dimension, both halves of one tensor, with gradients written straight into the halves;
Megatron's unfused form adds a pass over each half and joins their gradients with a copy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function


class SwiGLU:
    """Activation of Megatron's MLP; the constructor has the signature Megatron's specs call."""

    def __init__(self, **_: object) -> None:
        """Nothing to configure."""

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[..., 2F] -> [..., F]."""
        out: torch.Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
        return out


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        gate_grad, up_grad = out.chunk(2, -1)
        torch.mul(grad, activated, out=up_grad)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=gate_grad)
        return out
