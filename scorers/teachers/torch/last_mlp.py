"""The last layer's MLP computes only the positions that are read: nobody asks for the prompt's log-probabilities.

The numbers at the positions read are those of the whole MLP, up to rounding. Layers before the last need all: attention reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scorers.teachers.torch.linear import OneDnnLinear


class LastMlp:
    """Around an MLP that treats every position by itself, [B, L, H] to [B, L, H]: zeros where nobody reads."""

    def __init__(self, mlp: nn.Module) -> None:
        self._read_R: Tensor | None = None
        self._shape = torch.Size()
        mlp.register_forward_pre_hook(self._take)
        mlp.register_forward_hook(self._put)

    @contextmanager
    def reading(self, read_R: Tensor) -> Iterator[None]:
        """Of the flat positions in [B·L] only these; outside, all are computed."""
        self._read_R = read_R
        try:
            yield
        finally:
            self._read_R = None

    def _take(self, _mlp: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._read_R is None:
            return None
        x_BLH, *more = inputs
        self._shape = x_BLH.shape
        return (x_BLH.flatten(0, 1).index_select(0, self._read_R), *more)

    def _put(self, _mlp: nn.Module, _inputs: tuple[Tensor, ...], y_RH: Tensor) -> Tensor:
        if self._read_R is None:
            return y_RH
        return y_RH.new_zeros(self._shape).flatten(0, 1).index_copy_(0, self._read_R, y_RH).view(self._shape)


def last_mlp(body: nn.Module) -> LastMlp | None:
    """Around the last layer's MLP; None where there is none of linear layers and an activation."""
    layers = getattr(body, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    return LastMlp(mlp) if isinstance(mlp, nn.Module) and all(map(_is_by_position, mlp.children())) else None


def _is_by_position(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear | OneDnnLinear) or not list(part.parameters())
