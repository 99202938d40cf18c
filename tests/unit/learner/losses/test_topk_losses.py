"""The top-k losses against sums written out in float64 numpy, which know nothing of the code under test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses.topk import topk_forward_kl, topk_reverse_kl
from learner.training import LossFunction, LossInputs

Array = npt.NDArray[np.float64]
R, V = 5, 7


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    quotient: Array = powers / powers.sum(-1, keepdims=True)
    return quotient


def coarse(p: Array, ids: npt.NDArray[np.int64]) -> Array:
    chosen = np.take_along_axis(p, ids, -1)
    return np.concatenate([chosen, 1 - chosen.sum(-1, keepdims=True)], -1)


def reverse(p: Array, q: Array) -> Array:
    total: Array = (p * np.log(p / q)).sum(-1)
    return total


def forward(p: Array, q: Array) -> Array:
    return reverse(q, p)


def top_ids(q: Array, k: int) -> npt.NDArray[np.int64]:
    return np.argsort(-q, -1)[:, :k]


def inputs(logits: torch.Tensor, q: Array, k: int) -> LossInputs:
    logp_RV = torch.log_softmax(logits, -1)
    ids = torch.from_numpy(top_ids(q, k))
    sampled = torch.zeros(len(q), dtype=torch.int64)
    logq_RV = torch.from_numpy(np.log(q)).to(logits.dtype)
    sampled_logp = logp_RV.gather(-1, sampled[:, None])[:, 0]
    return LossInputs(
        student_logp_R=sampled_logp,
        teacher_logp_R=logq_RV[:, 0],
        behaviour_R=sampled_logp.detach(),
        lag_R=torch.zeros(len(q), dtype=torch.int32),
        position_R=torch.arange(len(q), dtype=torch.int32),
        student_top_RK=logp_RV.gather(-1, ids),
        teacher_top_RK=logq_RV.gather(-1, ids),
    )


def finite_differences(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    slopes = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        bump = np.zeros_like(at)
        bump[index] = step
        slopes[index] = (function(at + bump) - function(at - bump)) / (2 * step)
    return slopes


@pytest.mark.parametrize(("loss", "divergence"), [(topk_reverse_kl, reverse), (topk_forward_kl, forward)])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_value_and_gradient_are_those_of_the_coarsened_divergence(
    loss: LossFunction, divergence: Callable[[Array, Array], Array], k: int
) -> None:
    rng = np.random.default_rng(k)
    logits, q = rng.standard_normal((R, V)), softmax(rng.standard_normal((R, V)))
    ids = top_ids(q, k)

    def reference(x: Array) -> Array:
        return divergence(coarse(softmax(x), ids), coarse(q, ids))

    leaf = torch.tensor(logits, requires_grad=True)
    output = loss(inputs(leaf, q, k))
    output.loss_R.sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(output.loss_R.detach().numpy(), reference(logits), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(leaf.grad.numpy(), finite_differences(lambda x: float(reference(x).sum()), logits), atol=1e-8)


@pytest.mark.parametrize(("loss", "divergence"), [(topk_reverse_kl, reverse), (topk_forward_kl, forward)])
def test_with_all_ids_it_is_the_divergence_of_the_full_vocabulary(loss: LossFunction, divergence: Callable[[Array, Array], Array]) -> None:
    rng = np.random.default_rng(0)
    logits, q = rng.standard_normal((R, V)), softmax(rng.standard_normal((R, V)))
    leaf = torch.tensor(logits, requires_grad=True)
    output = loss(inputs(leaf, q, V))
    output.loss_R.sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(output.loss_R.detach().numpy(), divergence(softmax(logits), q), rtol=1e-9)
    slopes = finite_differences(lambda x: float(divergence(softmax(x), q).sum()), logits)
    np.testing.assert_allclose(leaf.grad.numpy(), slopes, atol=1e-7)


@pytest.mark.parametrize("loss", [topk_reverse_kl, topk_forward_kl])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_exactly_zero_where_the_student_is_the_teacher(loss: LossFunction, dtype: torch.dtype) -> None:
    logp_RK = torch.log_softmax(torch.randn(R, V, dtype=dtype, generator=torch.Generator().manual_seed(1)), -1)[:, :3]
    leaf = logp_RK.clone().requires_grad_()
    sampled = logp_RK[:, 0]
    output = loss(LossInputs(sampled, sampled, sampled, torch.zeros(R), torch.zeros(R), leaf, logp_RK))
    output.loss_R.sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()
    assert not output.loss_R.any()


def test_without_the_tail_bucket_the_gradient_would_not_vanish() -> None:
    q = softmax(np.random.default_rng(2).standard_normal((R, V)))
    ids = top_ids(q, 3)

    def truncated(x: Array) -> float:
        p = np.take_along_axis(softmax(x), ids, -1)
        return float((p * np.log(p / np.take_along_axis(q, ids, -1))).sum())

    slopes = finite_differences(truncated, np.log(q))
    assert (np.take_along_axis(slopes, ids, -1) > 1e-3).all(), "descent pushes mass out of the top-k"


@pytest.mark.parametrize("loss", [topk_reverse_kl, topk_forward_kl])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([0.0, -1e4], [0.0, -1e4]),
        ([0.0, -40.0], [-1e4, 0.0]),
        ([-1e4, -1e4], [0.0, -1e4]),
        ([-0.7, -0.7], [0.0, -90.0]),
        ([1e-7, -16.0], [1e-7, -16.0]),
    ],
)
def test_certain_distributions_give_finite_losses_and_gradients(loss: LossFunction, student: list[float], teacher: list[float]) -> None:
    leaf = torch.tensor([student], requires_grad=True)
    one = torch.tensor([-0.5])
    output = loss(LossInputs(one, one, one, torch.zeros(1), torch.zeros(1), leaf, torch.tensor([teacher])))
    output.loss_R.sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(output.loss_R).all()
    assert torch.isfinite(leaf.grad).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 20), st.integers(1, 7))
def test_the_divergences_are_never_negative_and_agree_in_float32(seed: int, scale: float, k: int) -> None:
    rng = np.random.default_rng(seed)
    logits, q = scale * rng.standard_normal((R, V)), softmax(rng.standard_normal((R, V)))
    for loss in (topk_reverse_kl, topk_forward_kl):
        single = loss(inputs(torch.tensor(logits, dtype=torch.float32), q, k)).loss_R
        double = loss(inputs(torch.tensor(logits), q, k)).loss_R
        assert (single >= -1e-6).all()
        torch.testing.assert_close(single.double(), double, rtol=0.05, atol=2e-5)  # float32 knows a tail of 1e-6 to a tenth


def test_the_metrics_are_detached_and_mean_what_they_say() -> None:
    rng = np.random.default_rng(4)
    logits, q = rng.standard_normal((R, V)), softmax(rng.standard_normal((R, V)))
    output = topk_reverse_kl(inputs(torch.tensor(logits, requires_grad=True), q, 2))
    p = softmax(logits)
    assert not any(metric.requires_grad for metric in output.metrics.values())
    np.testing.assert_allclose(output.metrics["kl"], output.loss_R.detach())
    np.testing.assert_allclose(output.metrics["student_top_mass"], np.take_along_axis(p, top_ids(q, 2), -1).sum(-1))
    np.testing.assert_allclose(output.metrics["teacher_top_mass"], np.take_along_axis(q, top_ids(q, 2), -1).sum(-1))
    np.testing.assert_allclose(output.metrics["behaviour_kl"], np.zeros(R))
