"""Causal self-attention over packed sequences without Transformer Engine.

Guarantees: a token attends to its own sequence only, from position 0 of that sequence; the indices and rotary tables are
made once per micro-batch, not per layer; pad slots neither influence real tokens nor receive gradients.

The packed rows are laid out as a right-padded batch for one call of torch's fused attention. With sequences sorted by length
little is padded, and one call for all beats a call per sequence by far.

Shapes: N packed tokens, B sequences of at most S tokens, A attention heads, D head dimension.
"""

# ruff: noqa: N815 - tensor names carry shape letters
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch.autograd import Function

from learner.megatron.rows import spread_rows, take_rows


@dataclass
class PackedSequences(PackedSeqParams):  # type: ignore[misc]
    """Megatron's description of packed sequences, and what `PaddedAttention` needs beyond it."""

    batch: int = field(kw_only=True)  # B
    slot_N: torch.Tensor = field(kw_only=True)  # slot of each token in the padded batch, B*S
    token_BS: torch.Tensor = field(kw_only=True)  # token of each slot; any token for pads
    cos_N: torch.Tensor = field(kw_only=True)  # [N, 1, D/2]
    sin_N: torch.Tensor = field(kw_only=True)


class PaddedAttention(MegatronModule):  # type: ignore[misc]
    """Core attention of Megatron's self-attention; applies the rotary positions itself.

    Megatron's own rotary code for packed sequences cuts the tokens apart per sequence, in every layer, for queries and keys.
    """

    def __init__(self, config: Any, *, pg_collection: Any, **_: object) -> None:  # Megatron's own types
        super().__init__(config=config)
        assert config.context_parallel_size == 1, "context parallelism needs Transformer Engine"
        assert pg_collection.tp.size() <= config.num_query_groups, "a rank holds whole groups of heads"

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **kwargs: Any) -> torch.Tensor:
        """query [N, A, D], key and value [N, A/groups, D] -> [N, A*D]."""
        packed: PackedSequences = kwargs["packed_seq_params"]
        query, key = (_rotated(x, packed) for x in (query, key))
        query, key, value = (_pad(x, packed) for x in (query, key, value))
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return take_rows(out.transpose(1, 2).flatten(2).flatten(0, 1), packed.slot_N)

    def sharded_state_dict(self, *_: object, **__: object) -> dict[str, object]:
        """Attention itself has no parameters."""
        return {}


def _pad(x: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
    """[N, heads, D] -> [B, heads, S, D]. Pads follow every real token, so causal attention leaves them without gradient."""
    return spread_rows(x, packed.token_BS, packed.slot_N).view(packed.batch, -1, *x.shape[1:]).transpose(1, 2)


def _rotated(x: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
    rotated: torch.Tensor = _Rotate.apply(x, packed.cos_N, packed.sin_N)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(Function):
    """Rotary positions (Su et al. 2021) on halves: (a, b) -> (a cos - b sin, b cos + a sin)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = out.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=direction)
    return out
