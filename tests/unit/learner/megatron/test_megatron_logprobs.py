"""Chunked log-probabilities against float64 sums over the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from learner.megatron import logprobs


@pytest.mark.parametrize("chunk_elements", [1 << 24, 23 * 3])
def test_values_and_gradients_are_those_of_a_full_softmax(chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk_elements)
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 8, requires_grad=True), torch.randn(23, 8, requires_grad=True)
    ids, upstream = torch.randint(0, 23, (10, 5)), torch.randn(10, 5)
    ids[0] = 4  # the same id several times
    found = logprobs.chosen_logprobs(hidden, weight, ids)
    found.backward(upstream)

    hidden_64, weight_64 = (x.detach().double().requires_grad_() for x in (hidden, weight))
    expected = torch.log_softmax(hidden_64 @ weight_64.T, -1).gather(1, ids)
    expected.backward(upstream.double())
    torch.testing.assert_close(found, expected.float(), atol=2e-6, rtol=0)
    torch.testing.assert_close(hidden.grad, hidden_64.grad.float(), atol=5e-6, rtol=0)
    torch.testing.assert_close(weight.grad, weight_64.grad.float(), atol=5e-6, rtol=0)


def test_huge_logits_stay_finite() -> None:
    hidden, weight = torch.full((1, 4), 200.0), torch.eye(4) * 50
    assert torch.isfinite(logprobs.chosen_logprobs(hidden, weight, torch.tensor([[0, 3]]))).all()


def test_bfloat16_inputs_give_float32_logprobs() -> None:
    hidden, weight = torch.randn(3, 4).bfloat16().requires_grad_(), torch.randn(6, 4).bfloat16().requires_grad_()
    found = logprobs.chosen_logprobs(hidden, weight, torch.zeros(3, 1, dtype=torch.int64))
    found.sum().backward()
    assert (found.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
