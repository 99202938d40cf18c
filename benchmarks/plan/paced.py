"""The default loss in a learner with the step time of a device: a step takes at least PACE_S; it computes for real and sleeps the rest."""

import os
import time

from common.config.sections import LossSection
from learner.losses import loss_for
from learner.training import LossInputs, LossOutput

_PACE_S = float(os.environ.get("PACE_S", "1.0"))


def topk_reverse_kl(inputs: LossInputs) -> LossOutput:
    """One micro-batch, which is the whole batch of the example."""
    begun = time.monotonic()
    output = loss_for(LossSection(kind="topk_reverse_kl"))(inputs)
    time.sleep(max(0.0, _PACE_S - (time.monotonic() - begun)))
    return output
