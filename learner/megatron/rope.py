"""Rotary frequencies of every kind of position scaling that this learner knows.

Guarantee: the frequencies are those of transformers for the same config.json. Kinds whose cos and sin depend on the sequence's length
or carry a factor of their own are not here and hence refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rope:
    """How fast each pair of dimensions turns with the position."""

    theta: float
    factor: float = 1.0  # every frequency is divided by it, or with `low` and `high` the slow ones
    low: float = 0.0  # llama3: wavelengths above positions / low are slow
    high: float = 0.0  # llama3: wavelengths below positions / high stay
    positions: int = 0  # llama3: context length before it was extended

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """[head_dim / 2] radians per position. llama3 as in Meta's release: between slow and fast it is interpolated."""
        half = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        plain = 1.0 / self.theta**half
        if not self.positions:
            return plain / self.factor
        turns = self.positions * plain / (2 * math.pi)  # within the old context
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain * kept + plain / self.factor * (1 - kept)


def read_rope(config: Mapping[str, Any], where: object) -> Rope:
    """As transformers 5 (`rope_parameters`) or 4 (`rope_theta`, `rope_scaling`) writes it; ConfigError for a kind that is not known."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = parameters.get("rope_theta") or config.get("rope_theta")
    if theta is None:
        raise ConfigError(f"{where}/config.json names no rope_theta: add it (Llama's own default is 10000.0)")
    if kind == "default":
        return Rope(float(theta))
    try:
        if kind == "linear":
            return Rope(float(theta), float(parameters["factor"]))
        if kind == "llama3":
            low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
            return Rope(float(theta), float(parameters["factor"]), low, high, int(parameters["original_max_position_embeddings"]))
    except KeyError as error:
        raise ConfigError(f"{where}/config.json: rope scaling '{kind}' lacks {error.args[0]}: copy the model again") from None
    raise ConfigError(f"{where} uses rope scaling '{kind}'; the learner knows default, linear and llama3")
