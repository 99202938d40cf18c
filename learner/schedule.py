"""The learning rate of a step: a pure function of the configuration and the step's number, so that resume needs no state."""

from __future__ import annotations

import math

from common.config.sections import OptimizerSection


def learning_rate(optimizer: OptimizerSection, step: int, steps: int) -> float:
    """Of step number `step` (1-based) out of `steps`: linear from 0 over the warm-up, then constant, linear or cosine to `min_lr`."""
    warmup = optimizer.warmup_steps
    if step <= warmup:
        return optimizer.lr * step / warmup
    if optimizer.schedule == "constant":
        return optimizer.lr
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 1 - share if optimizer.schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * left
