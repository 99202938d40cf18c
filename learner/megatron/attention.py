"""Causal self-attention over packed sequences without Transformer Engine.

Guarantees: a token attends to its own sequence only, from position 0 of that sequence; the indices and rotary tables are
made once per micro-batch, not per layer; pad slots neither influence real tokens nor receive gradients.

Sequences of similar length are laid out as a right-padded batch for one call of torch's fused attention: one call for many
short sequences beats a call for each by far, and one for all would spend its time on pads.

Context-parallel ranks hold a part of every sequence each: keys and values are gathered from all of them, and a mask says which of them a
query sees. Transformer Engine passes them on from rank to rank instead, and needs no mask; it takes this place where it is.

Shapes: N packed tokens, R rows that are trained, B sequences of at most S tokens in a block, A attention heads, D head dimension,
K keys of a sequence where S of its tokens are on this rank, M tokens on all context-parallel ranks.
"""

# ruff: noqa: N815 - tensor names carry shape letters
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch.autograd import Function

from learner.megatron.rows import spread_rows, take_rows


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive sequences of similar length, right-padded to the longest of them."""

    batch: int  # B
    tokens: int  # n, the block's share of the N packed tokens
    token_BS: torch.Tensor  # [B*S] token of each slot, counted within the block; any token for pads
    slot_n: torch.Tensor  # slot of each token


@dataclass(frozen=True, slots=True)
class Context:
    """What else there is of the sequences on other context-parallel ranks."""

    group: dist.ProcessGroup
    order_M: torch.Tensor  # sequence after sequence, where each key lies among those gathered
    blocks: tuple[Block, ...]  # the same sequences, whole
    seen_B1SK: tuple[torch.Tensor, ...]  # of each block


@dataclass
class PackedSequences(PackedSeqParams):  # type: ignore[misc]
    """Megatron's description of packed sequences, and what `PaddedAttention` and `LastLayer` need beyond it."""

    blocks: tuple[Block, ...] = field(kw_only=True)
    cos_NAD: torch.Tensor = field(kw_only=True)  # [N, A*D], the same for every head
    sin_NAD: torch.Tensor = field(kw_only=True)  # -sin in the first half of every head, sin in the second
    rows_R: torch.Tensor = field(kw_only=True)  # rows that reach the output layer
    context: Context | None = field(kw_only=True, default=None)  # None: the sequences are here as a whole


class PaddedAttention(MegatronModule):  # type: ignore[misc]
    """Core attention of Megatron's self-attention; applies the rotary positions itself.

    Megatron's own rotary code for packed sequences cuts the tokens apart per sequence, in every layer, for queries and keys.
    """

    def __init__(self, config: Any, *, pg_collection: Any, **_: object) -> None:  # Megatron's own types
        super().__init__(config=config)
        assert pg_collection.tp.size() <= config.num_query_groups, "a rank holds whole groups of heads"

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **kwargs: Any) -> torch.Tensor:
        """query [N, A, D], key and value [N, A/groups, D] -> [N, A*D]."""
        packed: PackedSequences = kwargs["packed_seq_params"]
        query, key = (_rotated(x, packed) for x in (query, key))
        blocks = packed.blocks
        seen: Sequence[torch.Tensor | None] = [None] * len(blocks)
        if packed.context is not None:
            key, value = (_gathered(x, packed.context) for x in (key, value))
            blocks, seen = packed.context.blocks, packed.context.seen_B1SK
        parts = zip(packed.blocks, blocks, seen, _cut(query, packed.blocks), _cut(key, blocks), _cut(value, blocks), strict=True)
        attended = [_attend(*part) for part in parts]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def sharded_state_dict(self, *_: object, **__: object) -> dict[str, object]:
        """Attention itself has no parameters."""
        return {}


def _gathered(x: torch.Tensor, context: Context) -> torch.Tensor:
    """[N, ...] of every rank -> [M, ...]; each rank's gradient is the sum of what all found."""
    return take_rows(gather_from_sequence_parallel_region(x, group=context.group), context.order_M)


def _cut(x: torch.Tensor, blocks: Sequence[Block]) -> Sequence[torch.Tensor]:
    parts: Sequence[torch.Tensor] = torch.split(x, [block.tokens for block in blocks])
    return parts


def _attend(
    block: Block, keys: Block, seen: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """[n, A, D], [m, A/groups, D] twice -> [n, A*D]. Pads follow every real token: causality leaves them without gradient."""
    query, key, value = (_laid_out(x, of) for x, of in ((query, block), (key, keys), (value, keys)))
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=seen is None, enable_gqa=grouped)
    return take_rows(out.transpose(1, 2).flatten(2).flatten(0, 1), block.slot_n)


def _laid_out(x: torch.Tensor, block: Block) -> torch.Tensor:
    """[n, A, D] -> [B, A, S, D]"""
    return spread_rows(x, block.token_BS, block.slot_n).view(block.batch, -1, *x.shape[1:]).transpose(1, 2)


def _rotated(x: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
    rotated: torch.Tensor = _Rotate.apply(x, packed.cos_NAD, packed.sin_NAD)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(Function):
    """Rotary positions (Su et al. 2021) on halves: (a, b) -> (a cos - b sin, b cos + a sin), as x cos + swapped x sin."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1), None, None


def _rotate(x: torch.Tensor, cos_NAD: torch.Tensor, sin_NAD: torch.Tensor, direction: int) -> torch.Tensor:
    flat = x.reshape(x.shape[0], -1)
    first, second = x.chunk(2, -1)
    swapped = torch.cat((second, first), -1).view(flat.shape)
    width = flat.shape[1]  # keys have fewer heads than the tables
    return torch.mul(flat, cos_NAD[:, :width]).addcmul_(swapped, sin_NAD[:, :width], value=direction).view(x.shape)
