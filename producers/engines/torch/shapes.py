"""How each slot wants its distribution shaped. Rows that want the model's own (temperature 1, full support) cost nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from common.messages import Sampling
from producers.engines.torch.sampler import PLAIN, Shape

_EVERYTHING = 1 << 40  # a top_k beyond any vocabulary


class Shapes:
    """Row i belongs to slot i."""

    def __init__(self, *, slots: int, device: torch.device) -> None:
        self._device = device
        self._scale_S = np.ones(slots, np.float32)
        self._top_p_S = np.ones(slots, np.float64)
        self._top_k_S = np.full(slots, _EVERYTHING, np.int64)
        self._tempered: set[int] = set()
        self._cut: set[int] = set()

    def begin(self, row: int, sampling: Sampling) -> None:
        """The row samples so from now on; temperature 0 is greedy."""
        self.end(row)
        greedy = sampling.temperature == 0
        self._scale_S[row] = 1.0 if greedy else 1.0 / sampling.temperature
        self._top_p_S[row] = sampling.top_p
        self._top_k_S[row] = 1 if greedy else sampling.top_k or _EVERYTHING
        if self._scale_S[row] != 1.0:
            self._tempered.add(row)
        if self._top_p_S[row] < 1.0 or self._top_k_S[row] != _EVERYTHING:
            self._cut.add(row)

    def end(self, row: int) -> None:
        """Back to the model's own distribution."""
        self._tempered.discard(row)
        self._cut.discard(row)
        self._scale_S[row], self._top_p_S[row], self._top_k_S[row] = 1.0, 1.0, _EVERYTHING

    def of(self, index_N: npt.NDArray[np.int64]) -> Shape:
        """What these rows ask for together."""
        if not (self._tempered or self._cut):
            return PLAIN
        scale_N1 = self._column(self._scale_S[index_N]) if self._tempered else None
        if not self._cut:
            return Shape(scale_N1)
        return Shape(scale_N1, self._column(self._top_p_S[index_N]), self._column(self._top_k_S[index_N]))

    def move(self, source: npt.NDArray[np.int64], target: npt.NDArray[np.int64]) -> None:
        """Rows `source` go on as rows `target`, which are free."""
        for old, new in zip(source.tolist(), target.tolist(), strict=True):
            for state in (self._scale_S, self._top_p_S, self._top_k_S):
                state[new] = state[old]
            for rows in (self._tempered, self._cut):
                if old in rows:
                    rows.add(new)
            self.end(old)

    def _column(self, values_N: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values_N).to(self._device)[:, None]
