"""Gradients written out by hand against torch's own."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from learner.megatron.adamw import GroupStepAdamW
from learner.megatron.norm import RMSNorm
from learner.megatron.swiglu import SwiGLU


def test_rms_norm_has_the_gradients_of_torch() -> None:
    torch.manual_seed(1)
    norm = RMSNorm(SimpleNamespace(params_dtype=torch.float32, sequence_parallel=False), 6, eps=1e-3)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x, upstream = torch.randn(5, 3, 6, requires_grad=True), torch.randn(5, 3, 6)
    norm(x).backward(upstream)
    y, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    F.rms_norm(y, (6,), weight, 1e-3).backward(upstream.double())
    torch.testing.assert_close(x.grad, y.grad.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(norm.weight.grad, weight.grad.float(), atol=1e-5, rtol=0)


def test_swiglu_has_the_gradients_of_torch() -> None:
    torch.manual_seed(1)
    x, upstream = torch.randn(5, 1, 8, requires_grad=True), torch.randn(5, 1, 4)
    out = SwiGLU()(x)
    out.backward(upstream)
    y = x.detach().double().requires_grad_()
    gate, up = y.chunk(2, -1)
    expected = F.silu(gate) * up
    expected.backward(upstream.double())
    torch.testing.assert_close(out, expected.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.grad, y.grad.float(), atol=1e-6, rtol=0)


def test_group_step_adamw_is_torchs_adamw() -> None:
    torch.manual_seed(1)
    ours = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(7))]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    options = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizers = [GroupStepAdamW(ours, **options), torch.optim.AdamW(theirs, **options)]
    for _ in range(4):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=0)
    assert optimizers[0].param_groups[0]["step"] == 4
