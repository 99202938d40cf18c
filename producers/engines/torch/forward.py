"""The student's forward pass over slots, through the architecture's own modelling code: this is what makes any causal LM work.

Letters: S slots, N the first rows, M newcomers, P longest prompt, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from producers.engines.torch.cache import SlotCache
from producers.engines.torch.loader import Student


class Forward(Protocol):
    """Both calls leave keys and values in `cache` and must run in inference mode."""

    cache: SlotCache

    def prefill(self, ids_MP: Tensor, lengths_M: Tensor, rows_M: Tensor) -> Tensor:
        """Puts right-padded prompts into rows; returns the logits [M, V] after each prompt's last token."""

    def decode(self, ids_N: Tensor, reach: int) -> Tensor:
        """One token for each of the first N rows, none longer than `reach` with it; returns logits [N, V]."""


class ModelForward:
    """Hugging Face's modelling code with our attention and cache."""

    def __init__(self, student: Student, *, slots: int) -> None:
        self._model = student.model
        self._last_M: Tensor | None = None  # prefill: where each prompt's last token stands
        self._model.get_output_embeddings().register_forward_pre_hook(self._keep_last)
        self.cache = SlotCache(slots=slots, dtype=student.dtype, device=student.device)

    def prefill(self, ids_MP: Tensor, lengths_M: Tensor, rows_M: Tensor) -> Tensor:
        """See Forward. A causal pass needs no mask: padding stands after every real token."""
        m, p = ids_MP.shape
        self.cache.admit(rows_M, lengths_M)
        position_MP = torch.arange(p, device=ids_MP.device).expand(m, p)
        self._last_M = lengths_M - 1
        try:
            return self._logits(ids_MP, position_MP, None)
        finally:
            self._last_M = None

    def decode(self, ids_N: Tensor, reach: int) -> Tensor:
        """See Forward."""
        n = len(ids_N)
        mask_N11W = self.cache.start_decode(n, reach)
        logits_NV = self._logits(ids_N[:, None], self.cache.position_S1[:n], mask_N11W)
        self.cache.end_decode()
        return logits_NV

    def _logits(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        out = self._model(input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self.cache, use_cache=True)
        logits: Tensor = out.logits
        return logits[:, 0]

    def _keep_last(self, _head: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the LM head: only each prompt's last position goes through it."""
        if self._last_M is None:
            return None
        hidden_MPD = inputs[0]
        row_M = torch.arange(len(hidden_MPD), device=hidden_MPD.device)
        return (hidden_MPD[row_M, self._last_M][:, None],)
