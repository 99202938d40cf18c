"""The router of a layer with experts where there is no Transformer Engine.

Guarantee: the scores that transformers computes, in the type of the hidden states. Megatron's own product asks for a kernel of
Transformer Engine by a name that is not bound without it (0.16.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.router import TopKRouter


class Router(TopKRouter):  # type: ignore[misc]
    """Megatron's, but for the product."""

    def gating(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name it is called by
        """[..., H] -> a score for every expert, [..., E]."""
        return F.linear(input, self.weight)
