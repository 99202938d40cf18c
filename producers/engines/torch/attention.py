"""The attention function that Hugging Face's modelling code calls: causal without a mask (prefill), one query per slot with one (decode).

Registered once under NAME; because no mask function goes with the name, transformers builds no masks and hands ours through.
Letters: N rows, H heads, K key-value heads, G = H / K, W columns, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "reflux_slots"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


def attend(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,  # transformers' own, they differ by architecture
) -> tuple[Tensor, None]:
    """query [N, H, T, D], key and value [N, K, W, D] → [N, T, H, D]. Raises ValueError for a kind of attention this is not."""
    unknown = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if unknown:
        raise ValueError(f"attention with {', '.join(unknown)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None:
        return attend_causal(query, key, value, scale), None
    n, h, _, _ = query.shape
    return attend_slots(query.view(n, h, -1), key, value, attention_mask.view(n, 1, -1), scale)[:, None], None


def attend_causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Prompts against themselves: query [M, H, P, D], key and value [M, K, P, D] → [M, P, H, D]."""
    grouped = query.shape[1] != key.shape[1]
    out = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def attend_slots(query_NHD: Tensor, key_NKWD: Tensor, value_NKWD: Tensor, mask_N1W: Tensor, scale: float) -> Tensor:
    """One query per row against its columns; the additive mask hides those that hold nothing of it. Returns [N, H, D]."""
    n, h, _ = query_NHD.shape
    k, w = key_NKWD.shape[1:3]
    query = (query_NHD * scale).reshape(n * k, h // k, -1)
    scores = torch.bmm(query, key_NKWD.view(n * k, w, -1).transpose(1, 2))
    scores.view(n, h, w).add_(mask_N1W)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.bmm(weights, value_NKWD.view(n * k, w, -1)).view(n, h, -1)


AttentionInterface.register(NAME, attend)
