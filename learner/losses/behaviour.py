"""How far the current student is from the distribution that sampled the tokens: staleness and engine mismatch in one number."""

from __future__ import annotations

import torch

from learner.training import LossInputs

LARGEST_LOG_RATIO = 20.0
"""Ratios are cut at e^±20, so that a recorded log-probability of −1e4 gives a large number instead of infinity."""


def log_ratio(inputs: LossInputs) -> torch.Tensor:
    """log π − log μ of every token [R], cut to ±20; differentiable through π."""
    return (inputs.student_logp_R - inputs.behaviour_R).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def behaviour_kl(inputs: LossInputs) -> torch.Tensor:
    """Estimate of KL(μ ‖ π) per token [R]: π/μ − 1 − log π/μ, unbiased and never negative (Schulman's k3)."""
    difference_R = log_ratio(inputs).detach()
    return torch.expm1(difference_R) - difference_R
