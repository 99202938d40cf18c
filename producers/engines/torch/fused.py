"""The forward pass of the Qwen3, Qwen2, Llama and Mistral family written out: the modelling code's mathematics in a third of the calls.

At this size Python and small kernels are the cost of a step, not arithmetic. The query, key and value matrices of a layer become one, gate
and up another; the model's own parameters turn into views of them, so there is one copy of the weights and a swap in place reaches it.
On a CPU in float32 a decode step's attention is one compiled call per layer (common/kernels.py), elsewhere PyTorch's batched products.
The start-up probe compares this path, too, with the modelling code's eager forward pass.

Letters: T tokens, N rows, M newcomers, P longest prompt, H heads, K key-value heads, D head width, F hidden width, W columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.kernels import Floats, attend_rows, normalise_rows
from producers.engines.torch.attention import attend_causal, attend_slots
from producers.engines.torch.cache import SlotCache
from producers.engines.torch.loader import Student

_FAMILY = {"Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # cos and sin depend on the position alone
_NO_NORM = np.empty(0, np.float32)


class FusedForward:
    """A Forward. `student` must be one that `can_fuse`; `compiled` only on a CPU in float32, by default there."""

    def __init__(self, student: Student, *, slots: int, compiled: bool | None = None) -> None:
        self.cache = SlotCache(slots=slots, dtype=student.dtype, device=student.device)
        model = student.model
        self._embedding: Any = model.model.embed_tokens
        self._norm: Any = model.model.norm
        self._head: Any = model.lm_head
        self._rope = _Rope(model.model.rotary_emb, self._embedding.weight)
        self._layers = [_Layer(index, layer) for index, layer in enumerate(model.model.layers)]
        can_compile = student.device.type == "cpu" and student.dtype == torch.float32
        self._hear_step = self._hear_compiled if (can_compile if compiled is None else compiled) else self._hear_masked

    def prefill(self, ids_MP: Tensor, lengths_M: Tensor, rows_M: Tensor) -> Tensor:
        """See Forward. A causal pass needs no mask: padding stands after every real token."""
        m, p = ids_MP.shape
        self.cache.admit(rows_M, lengths_M)
        place_MP = torch.arange(p, device=ids_MP.device).expand(m, p)
        cos_T1D, sin_T1D = self._rope.at(place_MP.flatten(), p)

        def hear(layer: _Layer, qkv_TAD: Tensor) -> Tensor:
            states = layer.split(qkv_TAD, cos_T1D, sin_T1D)
            query, key, value = (each.reshape(m, p, *each.shape[1:]).transpose(1, 2) for each in states)
            self.cache.update(key, value, layer.index)
            return attend_causal(query, key, value, layer.scale).flatten(2).flatten(0, 1)

        last_M = torch.arange(m, device=ids_MP.device) * p + lengths_M - 1
        return self._logits(self._through(ids_MP.flatten(), hear, keep=last_M))

    def decode(self, ids_N: Tensor, reach: int) -> Tensor:
        """See Forward."""
        x_NF = self._through(ids_N, self._hear_step(self.cache.position_S1[: len(ids_N), 0], reach))
        self.cache.end_decode()
        return self._logits(x_NF)

    def _hear_masked(self, position_N: Tensor, reach: int) -> Hear:
        """One token per row, every row against `reach` columns of which a mask hides those that are not its own."""
        n = len(position_N)
        mask_N1W = self.cache.start_decode(n, reach)[:, 0]
        cos_N1D, sin_N1D = self._rope.at(position_N, reach)

        def hear(layer: _Layer, qkv_NAD: Tensor) -> Tensor:
            query, key, value = layer.split(qkv_NAD, cos_N1D, sin_N1D)
            return attend_slots(query, *self.cache.update(key, value, layer.index), mask_N1W, layer.scale).view(n, -1)

        return hear

    def _hear_compiled(self, position_N: Tensor, reach: int) -> Hear:
        """One token per row, every row against its own columns."""
        cos_PD, sin_PD = (table.numpy() for table in self._rope.tables(reach))
        place_N = position_N.numpy()

        def hear(layer: _Layer, qkv_NAD: Tensor) -> Tensor:
            keys, values = (whole.numpy() for whole in self.cache.of_layer(layer.index))
            heard_NHD = qkv_NAD.new_empty(len(qkv_NAD), layer.heads, qkv_NAD.shape[2])
            attend_rows(qkv_NAD.numpy(), *layer.norms(), cos_PD, sin_PD, place_N, keys, values, layer.scale_32, heard_NHD.numpy())
            return heard_NHD.view(len(qkv_NAD), -1)

        return hear

    def _through(self, ids_T: Tensor, hear: Hear, keep: Tensor | None = None) -> Tensor:
        """All layers; of the last one only the rows `keep`, where nobody reads the others."""
        x_TF = functional.embedding(ids_T, self._embedding.weight)
        *lower, top = self._layers
        for layer in lower:
            x_TF = layer(x_TF, hear)
        return top(x_TF, hear, keep)

    def _logits(self, x_NF: Tensor) -> Tensor:
        return functional.linear(_rms(x_NF, self._norm), self._head.weight)


def can_fuse(student: Student) -> bool:
    """Whether the decode step written here is this model's."""
    model = student.model
    if type(model).__name__ not in _FAMILY or model.config.hidden_act != "silu":
        return False
    return model.model.rotary_emb.rope_type in _STATIC_ROPE


class _Layer:
    """One decoder layer; takes over the layer's matrices."""

    def __init__(self, index: int, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = index
        self._before: Any = layer.input_layernorm
        self._after: Any = layer.post_attention_layernorm
        self._qkv, self._qkv_bias = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gate_up, self._gate_up_bias = _fuse([mlp.gate_proj, mlp.up_proj])
        self._out: Any = attention.o_proj
        self._down: Any = mlp.down_proj
        self._q_norm: Any = getattr(attention, "q_norm", None)
        self._k_norm: Any = getattr(attention, "k_norm", None)
        self.heads: int = attention.q_proj.out_features // attention.head_dim
        self._kv_heads: int = attention.k_proj.out_features // attention.head_dim
        self.scale: float = attention.scaling
        self.scale_32 = np.float32(self.scale)
        self._middle: int = mlp.gate_proj.out_features

    def __call__(self, x_TF: Tensor, hear: Hear, keep: Tensor | None = None) -> Tensor:
        qkv_TF = functional.linear(_rms(x_TF, self._before), self._qkv, self._qkv_bias)
        heard = hear(self, qkv_TF.view(len(x_TF), self.heads + 2 * self._kv_heads, -1))
        if keep is not None:
            x_TF, heard = x_TF[keep], heard[keep]
        x_TF = _add_linear(x_TF, heard, self._out)
        gate_up = functional.linear(_rms(x_TF, self._after), self._gate_up, self._gate_up_bias)
        return _add_linear(x_TF, functional.silu(gate_up[:, : self._middle]).mul_(gate_up[:, self._middle :]), self._down)

    def split(self, qkv_TAD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, D], keys and values [T, K, D]; the first two normalised where the architecture does so, then turned to their
        positions."""
        h, k = self.heads, self._kv_heads
        raw = qkv_TAD[:, : h + k]
        if self._q_norm is not None:
            raw = torch.cat((_rms(raw[:, :h], self._q_norm), _rms(raw[:, h:], self._k_norm)), 1)
        first, second = raw.chunk(2, -1)
        turned = torch.addcmul(raw * cos_T1D, torch.cat((second, first), -1), sin_T1D)
        return turned[:, :h], turned[:, h:], qkv_TAD[:, h + k :]

    def norms(self) -> tuple[Floats, Floats, np.float32]:
        """Weights of the norms of queries and keys, none where the architecture has no such norm, and their epsilon."""
        if self._q_norm is None:
            return _NO_NORM, _NO_NORM, np.float32(0)
        return self._q_norm.weight.numpy(), self._k_norm.weight.numpy(), np.float32(self._q_norm.variance_epsilon)


Hear = Callable[[_Layer, Tensor], Tensor]
"""Attention of a layer: its queries, keys and values [T, H + 2K, D] as the matrix gave them → [T, H·D]."""


class _Rope:
    """cos and sin of every position so far, computed by the model's own rotary embedding; `sin` carries the sign of the half-rotation."""

    def __init__(self, embedding: Any, like: Tensor) -> None:
        self._embedding = embedding
        self._like = like
        self._cos_PD = self._sin_PD = like.new_empty(0, 0)

    def at(self, position_N: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """[N, 1, D] each; no position is `reach` or more."""
        cos_PD, sin_PD = self.tables(reach)
        return cos_PD.index_select(0, position_N)[:, None], sin_PD.index_select(0, position_N)[:, None]

    def tables(self, reach: int) -> tuple[Tensor, Tensor]:
        """[P, D] each, with P at least `reach`."""
        if reach > len(self._cos_PD):
            self._extend(max(reach, 2 * len(self._cos_PD)))
        return self._cos_PD, self._sin_PD

    def _extend(self, positions: int) -> None:
        position_1P = torch.arange(positions, device=self._like.device)[None]
        cos_1PD, sin_1PD = self._embedding(self._like, position_1P)
        half = sin_1PD.shape[-1] // 2
        self._cos_PD, self._sin_PD = cos_1PD[0].contiguous(), torch.cat((-sin_1PD[0, :, :half], sin_1PD[0, :, half:]), -1)


def _fuse(linears: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """One matrix (and bias) of several linear layers with one input, whose parameters become views of it."""
    matrix = _take_over([linear.weight for linear in linears])
    return matrix, None if linears[0].bias is None else _take_over([linear.bias for linear in linears])


def _take_over(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, piece in zip(parameters, torch.split(whole, [len(parameter) for parameter in parameters]), strict=True):
        parameter.data = piece
    return whole


def _rms(x: Tensor, norm: Any) -> Tensor:
    if x.dim() == 2 and x.dtype == torch.float32 and x.device.type == "cpu":
        out = torch.empty_like(x)
        normalise_rows(x.numpy(), norm.weight.numpy(), np.float32(norm.variance_epsilon), out.numpy())
        return out
    return functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _add_linear(x_NF: Tensor, inputs: Tensor, linear: Any) -> Tensor:
    """x + linear(inputs)."""
    out = torch.addmm(x_NF, inputs, linear.weight.t())
    return out if linear.bias is None else out + linear.bias
