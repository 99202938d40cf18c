"""Keys and values of all slots, in static tensors [slots, kv heads, columns, head width] that the modelling code reads and writes in place.

A token's column is its position, so a row's state is one number (`position`) and its attention is fixed by one additive mask row that
is changed in place: no mask is ever rebuilt, and a step reads no more columns than the longest row in flight has. `columns` grows by
half or to what is needed (one copy) and shrinks only while nothing is in flight: never more than 1.5 × the longest prompt + answer.
A slot without a request goes on decoding at column 0, into nothing (`advance` 0).

Letters: S slots, N the first rows, M newcomers, K key-value heads, C columns, W columns in use, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class SlotCache(Cache):  # type: ignore[misc]  # transformers has no types
    """Callers say with `start_prefill` or `start_decode` what the next forward pass is."""

    def __init__(self, *, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.columns = 0
        self._dtype, self._device = dtype, device
        self._keys: list[Tensor] = []  # per layer, all [S, K, C, D]
        self._values: list[Tensor] = []
        self.position_S1 = torch.zeros(slots, 1, dtype=torch.int64, device=device)  # column that the next token takes
        self._advance_S1 = torch.zeros_like(self.position_S1)  # 1 where a request lives
        self._mask_SC = torch.zeros(slots, 0, dtype=dtype, device=device)
        self._index_SK: Tensor | None = None  # row of the next token in a layer's tensor seen as [S·K·C, D]
        self._newcomers_M: Tensor | None = None
        self._rows = self._reach = 0

    def reserve(self, columns: int, *, empty: bool = False) -> None:
        """Makes room for rows of so many tokens; with `empty` (nothing in flight) it may also give memory back."""
        if columns <= self.columns and not (empty and self.columns > 2 * columns):
            return
        grown = columns if empty else max(columns, self.columns * 3 // 2)
        kept = min(grown, self.columns)
        self._keys = [_resized(old, grown, kept) for old in self._keys]
        self._values = [_resized(old, grown, kept) for old in self._values]
        mask_SC = torch.full((self.slots, grown), -torch.inf, dtype=self._dtype, device=self._device)
        mask_SC[:, :kept] = self._mask_SC[:, :kept]
        self._mask_SC, self.columns = mask_SC, grown
        self._index_SK = None

    def admit(self, rows_M: Tensor, lengths_M: Tensor) -> None:
        """Newcomers with prompts of these lengths take these rows."""
        column_C = torch.arange(self.columns, device=self._device)
        hidden_MC = torch.where(column_C < lengths_M[:, None], 0.0, -torch.inf).to(self._dtype)
        self._mask_SC.index_copy_(0, rows_M, hidden_MC)
        self.position_S1[rows_M, 0] = lengths_M
        self._advance_S1[rows_M] = 1
        self._index_SK = None
        self._newcomers_M = rows_M

    def release(self, rows_M: Tensor) -> None:
        """These rows carry nothing any more."""
        self.position_S1[rows_M] = 0
        self._advance_S1[rows_M] = 0
        self._index_SK = None

    def move(self, source_M: Tensor, target_M: Tensor, reach: int) -> None:
        """Rows `source` go on as rows `target`, which are free; `reach` columns of them matter."""
        for layer in (*self._keys, *self._values):
            layer[target_M, :, :reach] = layer[source_M, :, :reach]
        for state in (self._mask_SC, self.position_S1, self._advance_S1):
            state[target_M] = state[source_M]
        self.release(source_M)

    def start_decode(self, rows: int, reach: int) -> Tensor:
        """The next pass feeds one token to each of the first `rows`; returns the mask [N, 1, 1, W] that goes with it."""
        self._newcomers_M, self._rows, self._reach = None, rows, reach
        self._mask_SC[:rows].scatter_(1, self.position_S1[:rows], 0.0)
        return self._mask_SC[:rows, None, None, :reach]

    def end_decode(self) -> None:
        """Every living row takes its next column."""
        self.position_S1 += self._advance_S1
        if self._index_SK is not None:
            self._index_SK += self._advance_S1

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_args: Any,  # transformers' own, they differ by version
        **_options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Called by the modelling code with the new tokens' keys and values; returns those to attend to."""
        if self._newcomers_M is not None:
            self._store_prompts(key_states, value_states, layer_idx)
            return key_states, value_states
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        index = self._next_rows(keys.shape[1])
        keys.view(-1, keys.shape[-1]).index_copy_(0, index, key_states.reshape(-1, keys.shape[-1]))
        values.view(-1, values.shape[-1]).index_copy_(0, index, value_states.reshape(-1, values.shape[-1]))
        return keys[: self._rows, :, : self._reach], values[: self._rows, :, : self._reach]

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, [S, K, C, D], for a step that writes and reads them itself, without a mask."""
        return self._keys[layer], self._values[layer]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked by some architectures for a default of position_ids; we always give them."""
        del layer_idx
        return 0 if self._newcomers_M is not None else self._reach - 1

    def _store_prompts(self, key: Tensor, value: Tensor, layer: int) -> None:
        if layer == len(self._keys):  # the first prefill shows the sizes
            self._keys.append(self._empty(key))
            self._values.append(self._empty(value))
        length = key.shape[2]
        self._keys[layer][:, :, :length].index_copy_(0, self._newcomers_M, key)  # type: ignore[arg-type]
        self._values[layer][:, :, :length].index_copy_(0, self._newcomers_M, value)  # type: ignore[arg-type]

    def _empty(self, like_MKPD: Tensor) -> Tensor:
        _, heads, _, width = like_MKPD.shape
        return torch.zeros(self.slots, heads, self.columns, width, dtype=self._dtype, device=self._device)

    def _next_rows(self, heads: int) -> Tensor:
        """[N·K]: where each row's next token goes."""
        if self._index_SK is None:
            row_SK = torch.arange(self.slots * heads, device=self._device).view(self.slots, heads)
            self._index_SK = row_SK * self.columns + self.position_S1
        return self._index_SK[: self._rows].view(-1)


def _resized(old_SKCD: Tensor, columns: int, kept: int) -> Tensor:
    slots, heads, _, width = old_SKCD.shape
    new_SKCD = old_SKCD.new_zeros(slots, heads, columns, width)
    new_SKCD[:, :, :kept] = old_SKCD[:, :, :kept]
    return new_SKCD
