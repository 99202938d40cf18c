"""Losses: pure functions from LossInputs to LossOutput, each with its formula, bias and source in its docstring.

Everything is formed here under the current student; nothing is baked in when a rollout is scored.
"""

import logging
from functools import partial

from common.config import RunConfig
from common.config.sections import LossSection
from common.errors import ConfigError
from common.extension import PREFIX, load_function
from learner.collapse import known_collapse
from learner.training import LossFunction

__all__ = ["check_loss", "loss_for"]

log = logging.getLogger(__name__)


def loss_for(config: LossSection) -> LossFunction:
    """The loss that `loss.kind` names. Raises ConfigError."""
    from learner.losses.sampled import sampled_reverse_kl
    from learner.losses.topk import topk_forward_kl, topk_reverse_kl

    match config.kind:
        case "topk_reverse_kl":
            return topk_reverse_kl
        case "topk_forward_kl":
            return topk_forward_kl
        case "sampled_reverse_kl":
            return partial(sampled_reverse_kl, section=config)
        case kind if kind.startswith(PREFIX):
            return load_function(kind, "loss.kind")
    raise ConfigError(
        f"loss.kind = {config.kind!r} is unknown: write topk_reverse_kl, topk_forward_kl, sampled_reverse_kl or python:module:function"
    )


def check_loss(config: RunConfig) -> None:
    """Refuses what cannot work (ConfigError) and warns of what was measured to collapse."""
    loss_for(config.loss)
    if config.loss.kind != "sampled_reverse_kl":
        return
    if config.sampling.temperature != 1:
        raise ConfigError(
            f"loss.kind = sampled_reverse_kl needs sampling.temperature = 1, not {config.sampling.temperature}: its ratio compares "
            "the student's distribution with the one sampled from; set it to 1 or use topk_reverse_kl"
        )
    if warning := known_collapse(config):
        log.warning("%s", warning)
