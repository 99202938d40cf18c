"""The sampled-token loss: its exact expectation over a small vocabulary against gradients written out in float64 numpy."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from common.config import parse_config
from common.config.sections import LossSection
from common.errors import ConfigError
from learner.losses import check_loss, loss_for
from learner.losses.behaviour import behaviour_kl
from learner.training import LossInputs, LossOutput

Array = npt.NDArray[np.float64]
V = 6


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    quotient: Array = powers / powers.sum()
    return quotient


def section(**values: Any) -> LossSection:
    return LossSection(kind="sampled_reverse_kl", **values)


def reverse_kl_gradient(logits: Array, teacher: Array) -> Array:
    """∂/∂x_j Σ_v π_v log(π_v / T_v), by central differences."""

    def divergence(x: Array) -> float:
        p = softmax(x)
        return float((p * np.log(p / teacher)).sum())

    return np.array([(divergence(logits + e) - divergence(logits - e)) / 2e-5 for e in 1e-5 * np.eye(V)])


def expected_gradient(logits: Array, teacher: Array, sampler: Array, loss: LossSection) -> Array:
    """Σ_v μ_v ∇ loss(v): the exact expectation over which token is sampled."""
    leaf = torch.tensor(logits, requires_grad=True)
    output = loss_for(loss)(every_token(torch.log_softmax(leaf, -1), teacher, sampler))
    (output.loss_R * torch.from_numpy(sampler)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def every_token(logp_V: torch.Tensor, teacher: Array, sampler: Array) -> LossInputs:
    return LossInputs(
        logp_V, torch.from_numpy(np.log(teacher)), torch.from_numpy(np.log(sampler)), torch.zeros(V), torch.arange(V)
    )  # fmt: skip


@pytest.fixture
def toy() -> tuple[Array, Array, Array]:
    """Logits of the student, distribution of the teacher, distribution of a stale sampler."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal(V)
    return logits, softmax(logits + rng.standard_normal(V)), softmax(logits + 0.3 * rng.standard_normal(V))


@pytest.mark.parametrize("correction", ["icepop", "tis", "ppo"])
def test_on_policy_the_expected_gradient_is_that_of_the_reverse_kl(toy: tuple[Array, Array, Array], correction: str) -> None:
    logits, teacher, _ = toy
    found = expected_gradient(logits, teacher, softmax(logits), section(correction=correction))
    np.testing.assert_allclose(found, reverse_kl_gradient(logits, teacher), atol=1e-8)


@pytest.mark.parametrize("correction", ["icepop", "tis"])
def test_off_policy_the_ratio_corrects_the_expectation(toy: tuple[Array, Array, Array], correction: str) -> None:
    logits, teacher, sampler = toy
    wide = section(correction=correction, ratio_low=1e-3, ratio_high=1e3)
    np.testing.assert_allclose(expected_gradient(logits, teacher, sampler, wide), reverse_kl_gradient(logits, teacher), atol=1e-8)


def test_k1_used_as_a_loss_has_no_expected_gradient(toy: tuple[Array, Array, Array]) -> None:
    logits, teacher, _ = toy
    leaf = torch.tensor(logits, requires_grad=True)
    logp = torch.log_softmax(leaf, -1)
    (logp.exp().detach() * (logp - torch.from_numpy(np.log(teacher)))).sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), 0, atol=1e-12)


def test_icepop_gives_no_gradient_to_tokens_outside_its_band(toy: tuple[Array, Array, Array]) -> None:
    logits, teacher, _ = toy
    logp = torch.log_softmax(torch.tensor(logits), -1).requires_grad_()
    ratios = np.array([0.4, 0.6, 1.0, 4.0, 6.0, 1e9])
    output = loss_for(section())(every_token(logp, teacher, np.exp(logp.detach().numpy()) / ratios))
    output.loss_R.sum().backward()
    assert logp.grad is not None
    advantage = np.log(teacher) - logp.detach().numpy()
    np.testing.assert_allclose(logp.grad.numpy(), -ratios * advantage * [0, 1, 1, 1, 0, 0], rtol=1e-9)
    assert output.metrics["ratio_kept"].tolist() == [0, 1, 1, 1, 0, 0]


def test_tis_cuts_the_weight_at_its_cap(toy: tuple[Array, Array, Array]) -> None:
    logits, teacher, _ = toy
    logp = torch.log_softmax(torch.tensor(logits), -1).requires_grad_()
    ratios = np.array([0.01, 0.6, 1.0, 4.0, 6.0, 1e9])
    loss_for(section(correction="tis"))(every_token(logp, teacher, np.exp(logp.detach().numpy()) / ratios)).loss_R.sum().backward()
    assert logp.grad is not None
    advantage = np.log(teacher) - logp.detach().numpy()
    np.testing.assert_allclose(logp.grad.numpy(), -np.minimum(ratios, 5) * advantage, rtol=1e-9)


def test_ppo_stops_moving_what_has_moved_far_enough() -> None:
    logp = torch.full((4,), -1.0, dtype=torch.float64, requires_grad=True)
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    teacher = torch.tensor([-0.5, -1.5, -0.5, -1.5], dtype=torch.float64)
    inputs = LossInputs(logp, teacher, logp.detach() - ratios.log(), torch.zeros(4), torch.zeros(4))
    output = loss_for(section(correction="ppo"))(inputs)
    output.loss_R.sum().backward()
    assert logp.grad is not None
    np.testing.assert_allclose(logp.grad.numpy(), [0, 0.75, -0.25, 0], atol=1e-12)
    assert output.metrics["ratio_kept"].tolist() == [0, 1, 1, 0]


def test_large_advantages_are_cut(toy: tuple[Array, Array, Array]) -> None:
    logp = torch.full((2,), -1.0, requires_grad=True)
    inputs = LossInputs(logp, torch.tensor([-1e4, -0.5]), logp.detach(), torch.zeros(2), torch.zeros(2))
    output = loss_for(section(advantage_cap=2.0))(inputs)
    output.loss_R.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [2.0, -0.5]
    assert output.metrics["advantage_capped"].tolist() == [1, 0]


@pytest.mark.parametrize("correction", ["icepop", "tis", "ppo"])
def test_clamped_log_probabilities_give_finite_losses(correction: str) -> None:
    logp = torch.tensor([-1e4, -0.1, -1e4, -0.1], requires_grad=True)
    behaviour = torch.tensor([-0.1, -1e4, -1e4, -0.1])
    output = loss_for(section(correction=correction))(LossInputs(logp, behaviour, behaviour, torch.zeros(4), torch.zeros(4)))
    output.loss_R.sum().backward()
    assert logp.grad is not None
    for tensor in (output.loss_R, logp.grad, *output.metrics.values()):
        assert torch.isfinite(tensor).all()


def test_the_behaviour_kl_is_unbiased(toy: tuple[Array, Array, Array]) -> None:
    logits, teacher, sampler = toy
    student = softmax(logits)
    estimate = behaviour_kl(every_token(torch.from_numpy(np.log(student)), teacher, sampler)).numpy()
    assert (estimate >= 0).all()
    np.testing.assert_allclose((sampler * estimate).sum(), (sampler * np.log(sampler / student)).sum(), rtol=1e-9)


def own_loss(inputs: LossInputs) -> LossOutput:
    return LossOutput(-inputs.student_logp_R)


def test_a_function_of_the_users_own_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("their_losses")
    module.own = own_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_losses", module)
    assert loss_for(LossSection(kind="python:their_losses:own")) is own_loss


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("kl", "write topk_reverse_kl"),
        ("python:nowhere_at_all:f", "no module nowhere_at_all"),
        ("python:math:nothing", "has no function nothing"),
        ("python:math", "write python:module:function"),
    ],
)
def test_an_unknown_loss_is_refused(kind: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        loss_for(LossSection(kind=kind))


def configured(**sections: Any) -> Any:
    base: dict[str, Any] = {"run": {"name": "r"}, "model": {"student": "/s"}, "teachers": {"t": {"path": "/t"}}, "data": {"prompts": "/p"}}
    return parse_config(base | {"evaluation": {"prompts": 0}} | sections)


def test_sampled_tokens_at_another_temperature_are_refused() -> None:
    check_loss(configured(sampling={"temperature": 0.7}))
    with pytest.raises(ConfigError, match=r"sampling\.temperature = 1, not 0\.7"):
        check_loss(configured(loss={"kind": "sampled_reverse_kl"}, sampling={"temperature": 0.7}))


def test_what_is_known_to_collapse_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    kind = {"kind": "sampled_reverse_kl"}
    check_loss(configured(loss=kind, learner={"max_staleness": 1}, optimizer={"lr": 1e-3}))
    check_loss(configured(loss=kind, learner={"max_staleness": 16}, optimizer={"lr": 1e-6}))
    check_loss(configured(learner={"max_staleness": 16}, optimizer={"lr": 1e-3}))
    assert not caplog.records
    check_loss(configured(loss=kind, learner={"max_staleness": 4}, optimizer={"lr": 1e-3}))
    assert "likely to collapse" in caplog.text
