"""Which configurations were measured to collapse (docs/staleness.md), said before anything starts. Needs no torch."""

from __future__ import annotations

from common.config import RunConfig

SAFE_LR = 1e-4
SAFE_STALENESS = 1


def known_collapse(config: RunConfig) -> str:
    """One sentence that says what to write instead; empty where nothing bad is known."""
    lag, lr = config.learner.max_staleness, config.optimizer.lr
    if config.loss.kind != "sampled_reverse_kl" or lag <= SAFE_STALENESS or lr <= SAFE_LR:
        return ""
    return (
        f"sampled_reverse_kl with learner.max_staleness = {lag} and optimizer.lr = {lr:g} is likely to collapse: "
        f"use topk_reverse_kl, max_staleness <= {SAFE_STALENESS}, or lr <= {SAFE_LR:g}"
    )
