"""The losses, paced: a step takes at least PACE_S, so that the other stages catch up and the lag is the whole window."""

import os
import time

from common.config.sections import LossSection
from learner.losses import loss_for
from learner.training import LossInputs, LossOutput

_PACE_S = float(os.environ.get("PACE_S", "0.2"))


def _paced(inputs: LossInputs, section: LossSection) -> LossOutput:
    time.sleep(_PACE_S)
    return loss_for(section)(inputs)


def topk_reverse_kl(inputs: LossInputs) -> LossOutput:
    """The default loss."""
    return _paced(inputs, LossSection(kind="topk_reverse_kl"))


def sampled_reverse_kl(inputs: LossInputs) -> LossOutput:
    """The sampled-token loss with IcePop's mask."""
    return _paced(inputs, LossSection(kind="sampled_reverse_kl"))
