"""The decode step of the Qwen3, Qwen2 and Llama family written out: the same mathematics as the modelling code in a third of the calls.

At this size Python and small kernels are the cost of a step, not arithmetic. The query, key and value matrices of a layer become one, gate
and up another; the model's own parameters turn into views of them, so prefill still goes through the modelling code, there is one
copy of the weights, and a swap in place reaches both. The start-up probe compares this path, too, with the eager forward pass.

Letters: N rows, H heads, K key-value heads, D head width, F hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from producers.engines.torch.attention import attend_slots
from producers.engines.torch.cache import SlotCache
from producers.engines.torch.forward import ModelForward
from producers.engines.torch.loader import Student

_FAMILY = {"Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # cos and sin depend on the position alone


class FusedForward:
    """A Forward. `student.model` must be one that `can_fuse`."""

    def __init__(self, student: Student, *, slots: int) -> None:
        self._prompts = ModelForward(student, slots=slots)
        self.cache: SlotCache = self._prompts.cache
        model = student.model
        self._embedding: Any = model.model.embed_tokens
        self._norm: Any = model.model.norm
        self._head: Any = model.lm_head
        self._rope = _Rope(model.model.rotary_emb, self._embedding.weight)
        self._layers = [_Layer(index, layer) for index, layer in enumerate(model.model.layers)]

    def prefill(self, ids_MP: Tensor, lengths_M: Tensor, rows_M: Tensor) -> Tensor:
        """See Forward."""
        return self._prompts.prefill(ids_MP, lengths_M, rows_M)

    def decode(self, ids_N: Tensor, reach: int) -> Tensor:
        """See Forward."""
        mask_N1W = self.cache.start_decode(len(ids_N), reach)[:, 0]
        cos_N1D, sin_N1D = self._rope.at(self.cache.position_S1[: len(ids_N), 0], reach)
        x_NF = functional.embedding(ids_N, self._embedding.weight)
        for layer in self._layers:
            x_NF = layer(x_NF, self.cache, mask_N1W, cos_N1D, sin_N1D)
        self.cache.end_decode()
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
        self._index = index
        self._before: Any = layer.input_layernorm
        self._after: Any = layer.post_attention_layernorm
        self._qkv, self._qkv_bias = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self._gate_up, self._gate_up_bias = _fuse([mlp.gate_proj, mlp.up_proj])
        self._out: Any = attention.o_proj
        self._down: Any = mlp.down_proj
        self._q_norm: Any = getattr(attention, "q_norm", None)
        self._k_norm: Any = getattr(attention, "k_norm", None)
        self._width: int = attention.head_dim
        self._heads = attention.q_proj.out_features // self._width
        self._kv_heads = attention.k_proj.out_features // self._width
        self._scale: float = attention.scaling
        self._middle: int = mlp.gate_proj.out_features

    def __call__(self, x_NF: Tensor, cache: SlotCache, mask_N1W: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        x_NF = _add_linear(x_NF, self._attend(_rms(x_NF, self._before), cache, mask_N1W, cos_N1D, sin_N1D), self._out)
        gate_up = functional.linear(_rms(x_NF, self._after), self._gate_up, self._gate_up_bias)
        return _add_linear(x_NF, functional.silu(gate_up[:, : self._middle]).mul_(gate_up[:, self._middle :]), self._down)

    def _attend(self, x_NF: Tensor, cache: SlotCache, mask_N1W: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        n, h = len(x_NF), self._heads
        qkv = functional.linear(x_NF, self._qkv, self._qkv_bias).view(n, -1, self._width)
        rotating, value = qkv[:, : h + self._kv_heads], qkv[:, h + self._kv_heads :]
        if self._q_norm is not None:
            rotating = torch.cat((_rms(rotating[:, :h], self._q_norm), _rms(rotating[:, h:], self._k_norm)), 1)
        first, second = rotating.chunk(2, -1)
        rotated = torch.addcmul(rotating * cos_N1D, torch.cat((second, first), -1), sin_N1D)
        keys, values = cache.update(rotated[:, h:], value, self._index)
        return attend_slots(rotated[:, :h], keys, values, mask_N1W, self._scale).view(n, -1)


class _Rope:
    """cos and sin of every position so far, computed by the model's own rotary embedding; `sin` carries the sign of the half-rotation."""

    def __init__(self, embedding: Any, like: Tensor) -> None:
        self._embedding = embedding
        self._like = like
        self._cos_PD = self._sin_PD = like.new_empty(0, 0)

    def at(self, position_N: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """[N, 1, D] each; no position is `reach` or more."""
        if reach > len(self._cos_PD):
            self._extend(max(reach, 2 * len(self._cos_PD)))
        return self._cos_PD.index_select(0, position_N)[:, None], self._sin_PD.index_select(0, position_N)[:, None]

    def _extend(self, positions: int) -> None:
        position_1P = torch.arange(positions, device=self._like.device)[None]
        cos_1PD, sin_1PD = self._embedding(self._like, position_1P)
        half = sin_1PD.shape[-1] // 2
        self._cos_PD, self._sin_PD = cos_1PD[0], torch.cat((-sin_1PD[0, :, :half], sin_1PD[0, :, half:]), -1)


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
    return functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _add_linear(x_NF: Tensor, inputs: Tensor, linear: Any) -> Tensor:
    """x + linear(inputs)."""
    out = torch.addmm(x_NF, inputs, linear.weight.t())
    return out if linear.bias is None else out + linear.bias
