"""Reverse KL from the sampled tokens alone: cheap on the wire, noisy, and sensitive to staleness.

Legend: R trained tokens; π current student, μ the distribution that sampled, T teacher; sg stops the gradient.
"""

from __future__ import annotations

import torch

from common.config.sections import LossSection
from learner.losses.behaviour import behaviour_kl, log_ratio
from learner.training import LossInputs, LossOutput


def sampled_reverse_kl(inputs: LossInputs, *, section: LossSection) -> LossOutput:
    """Policy gradient with the advantage A = clip(log T − sg log π, ±c), which is minus the k1 estimate of KL(π ‖ T).

    icepop: −w A log π with w = sg(π/μ) where ratio_low ≤ π/μ ≤ ratio_high, else 0 (IcePop, arXiv 2510.18855)
    tis:    −w A log π with w = min(sg(π/μ), ratio_high) (truncated importance sampling)
    ppo:    −min(π/μ A, clip(π/μ, 1 ± clip) A) (arXiv 1707.06347)

    On-policy and with |log T/π| < c all three have in expectation the gradient of the reverse KL (k1 as a *reward*; as a *loss* its
    expected gradient is zero, arXiv 2512.21852). Bias: the cap shrinks large disagreements; masking and truncation drop or shrink what
    moved far from μ; the weight corrects the token, not the prefix before it. Source: on-policy distillation with sampled tokens
    (Thinking Machines, 2025).
    """
    advantage_R = (inputs.teacher_logp_R - inputs.student_logp_R.detach()).clamp(-section.advantage_cap, section.advantage_cap)
    ratio_R = log_ratio(inputs).exp()
    weight_R = ratio_R.detach()
    match section.correction:
        case "icepop":
            kept_R = (weight_R >= section.ratio_low) & (weight_R <= section.ratio_high)
            loss_R = -torch.where(kept_R, weight_R, 0) * advantage_R * inputs.student_logp_R
        case "tis":
            kept_R = weight_R <= section.ratio_high
            loss_R = -weight_R.clamp(max=section.ratio_high) * advantage_R * inputs.student_logp_R
        case "ppo":
            clipped_R = ratio_R.clamp(1 - section.clip, 1 + section.clip)
            gain_R = torch.minimum(ratio_R * advantage_R, clipped_R * advantage_R)
            kept_R = (ratio_R * advantage_R <= clipped_R * advantage_R).detach()
            loss_R = -gain_R
    with torch.no_grad():
        metrics = {
            "kl": inputs.student_logp_R.detach() - inputs.teacher_logp_R,
            "ratio": weight_R,
            "ratio_kept": kept_R.to(weight_R.dtype),
            "advantage_capped": (advantage_R.abs() >= section.advantage_cap).to(weight_R.dtype),
            "behaviour_kl": behaviour_kl(inputs),
        }
    return LossOutput(loss_R, metrics)
