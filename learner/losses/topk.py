"""Kullback-Leibler divergences between student and teacher on the teacher's top-k ids and one bucket for everything else.

Both are proper divergences of the two distributions coarsened to K + 1 outcomes: never negative, and with a gradient that is exactly zero
where the student equals the teacher. Neither looks at who sampled the tokens, so stale samples only change *where* they are measured.

Legend: R trained tokens, K the teacher's top-k, C = K + 1 outcomes; p student, q teacher.
"""

from __future__ import annotations

import torch

from learner.losses.behaviour import behaviour_kl
from learner.training import LossInputs, LossOutput

TAIL_FLOOR = 1e-6
"""Least mass of the bucket: sums of float32 probabilities are not known better. Below it the bucket has no gradient."""


def topk_reverse_kl(inputs: LossInputs) -> LossOutput:
    """Reverse KL(p ‖ q) = Σ_C p (log p − log q), mode-seeking.

    Computed as Σ_C p (log p − log q) − p + q, which is the same number as both sides sum to 1, but non-negative term by term and with
    the gradient Σ_C (log p − log q) ∇p, without the cancelling ∇p. Bias: differences among ids outside the teacher's top-k do not count,
    so it is a lower bound of the KL of the full vocabulary. Without the bucket it would push mass out of the top-k even at p = q.
    Source: GKD with reverse KL (arXiv 2306.13649), coarsened.
    """
    logp_RC, logq_RC = _coarse(inputs)
    p_RC, q_RC = logp_RC.exp(), logq_RC.exp()
    return _output((p_RC * (logp_RC - logq_RC) - p_RC + q_RC).sum(-1), logp_RC, logq_RC, inputs)


def topk_forward_kl(inputs: LossInputs) -> LossOutput:
    """Forward KL(q ‖ p) = Σ_C q (log q − log p), mass-covering.

    Computed as Σ_C q (log q − log p) − q + p, with the gradient Σ_C (1 − q/p) ∇p. Bias: as topk_reverse_kl a lower bound of the full
    vocabulary's KL; the published form leaves the bucket out, which pulls all mass into the top-k; with K of 32 and more they agree.
    Source: AsyncOPD (arXiv 2606.24143).
    """
    logp_RC, logq_RC = _coarse(inputs)
    p_RC, q_RC = logp_RC.exp(), logq_RC.exp()
    return _output((q_RC * (logq_RC - logp_RC) - q_RC + p_RC).sum(-1), logp_RC, logq_RC, inputs)


def _coarse(inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [R, C] of student and teacher, the bucket last."""
    assert inputs.student_top_RK is not None, "a top-k loss needs the teacher's top-k"
    assert inputs.teacher_top_RK is not None, "a top-k loss needs the teacher's top-k"
    return _with_tail(inputs.student_top_RK), _with_tail(inputs.teacher_top_RK)


def _with_tail(logp_RK: torch.Tensor) -> torch.Tensor:
    mass_R = logp_RK.exp().sum(-1, keepdim=True)
    return torch.cat((logp_RK, torch.log1p(-mass_R.clamp(max=1 - TAIL_FLOOR))), -1)


def _output(loss_R: torch.Tensor, logp_RC: torch.Tensor, logq_RC: torch.Tensor, inputs: LossInputs) -> LossOutput:
    with torch.no_grad():
        p_RC, q_RC = logp_RC.exp(), logq_RC.exp()
        metrics = {
            "kl": loss_R.detach(),
            "student_top_mass": 1 - p_RC[:, -1],
            "teacher_top_mass": 1 - q_RC[:, -1],
            "entropy_gap": (q_RC * logq_RC - p_RC * logp_RC).sum(-1),  # H(p) − H(q)
            "behaviour_kl": behaviour_kl(inputs),
        }
    return LossOutput(loss_R, metrics)
