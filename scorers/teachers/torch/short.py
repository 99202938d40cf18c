"""Short sequences on one CPU thread: the forward pass of the Qwen3, Qwen2, Llama and Mistral family written out, with little time spent
outside the matrix products.

A short sequence's scores fit the cache whole, so that attention is two batched products with one compiled pass before each; oneDNN adds,
multiplies and activates while it writes a product. Whoever loads a model compares this path with the modelling code's own forward.

Letters: B sequences, L padded length, T = B·L tokens, R tokens read, H heads, K key-value heads, A = H + 2K, D head width, F hidden width.
"""

from __future__ import annotations

from typing import Any  # transformers' modules are untyped

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from common.kernels import Floats, Numbers, normalise_rows, softmax_causal, spread_heads

_FAMILY = {"Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # cos and sin depend on the position alone
_LONGEST = 256  # tokens: behind it, flash attention saves more than a compiled pass
_SCORES = 1 << 18  # of attention at a time: 1 MiB of float32
_NO_NORM = np.empty(0, np.float32)


class ShortBody:
    """All layers of a frozen model that `can_be_short`; takes over its attention matrices."""

    def __init__(self, model: Any) -> None:
        body = model.base_model
        window = getattr(model.config, "sliding_window", None)
        self.longest = min(_LONGEST, window or _LONGEST)
        self._embedding: Tensor = body.embed_tokens.weight
        tables = _rotation(body.rotary_emb, self.longest)
        self._layers = [_Layer(layer, tables) for layer in body.layers]
        self._norm = _Norm(body.norm)

    def hidden(self, ids_BL: Tensor, read_R: Tensor) -> Tensor:
        """[R, F] at the flat positions `read_R` of right-padded ids, L at most `longest`."""
        x_TF = functional.embedding(ids_BL.flatten(), self._embedding)
        *lower, top = self._layers
        for layer in lower:
            x_TF = layer(x_TF, ids_BL.shape[1])
        return self._norm(top(x_TF, ids_BL.shape[1], read_R))


def can_be_short(model: Any) -> bool:
    """Whether the pass written here is this model's and this machine has what it stands on."""
    if type(model).__name__ not in _FAMILY or model.config.hidden_act != "silu" or model.device.type != "cpu":
        return False
    if model.base_model.rotary_emb.rope_type not in _STATIC_ROPE or torch.get_num_threads() > 1:
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    has_bf16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return model.dtype == torch.float32 or (has_bf16 and model.dtype == torch.bfloat16)


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: Any, tables: tuple[Floats, Floats]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._before, self._after = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._qkv = _joined([linear.weight for linear in inputs])
        self._qkv_bias = None if inputs[0].bias is None else _joined([linear.bias for linear in inputs])
        self._out, self._gate, self._up, self._down = attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._width: int = attention.head_dim
        self._kv_heads = len(attention.k_proj.weight) // self._width
        self._group = len(attention.q_proj.weight) // len(attention.k_proj.weight)
        self._scale = np.float32(attention.scaling)
        self._turn = (*_head_norms(attention), *tables)

    def __call__(self, x_TF: Tensor, length: int, read_R: Tensor | None = None) -> Tensor:
        """Of the tokens `read` only, where nobody reads the others."""
        qkv_TX = _linear(self._before(x_TF), self._qkv, self._qkv_bias)
        heard_TX = self._hear(qkv_TX.view(len(x_TF), -1, self._width), length)
        if read_R is not None:
            x_TF, heard_TX = x_TF.index_select(0, read_R), heard_TX.index_select(0, read_R)
        x_TF = _linear_with(heard_TX, self._out, "add", x_TF)
        normal_TF = self._after(x_TF)
        gate_TX = _linear(normal_TF, self._gate.weight, self._gate.bias, "swish")
        return _linear_with(_linear_with(normal_TF, self._up, "mul", gate_TX), self._down, "add", x_TF)

    def _hear(self, qkv_TAD: Tensor, length: int) -> Tensor:
        """[T, H·D]."""
        heads = self._kv_heads * self._group
        heard_TX = qkv_TAD.new_empty(len(qkv_TAD), heads * self._width)
        step = length * max(1, _SCORES // (heads * length * length))
        for first in range(0, len(qkv_TAD), step):
            part = qkv_TAD[first : first + step]
            heard_XLD = self._hear_whole(part, len(part) // length, length)
            spread = heard_XLD.view(-1, heads, length, self._width).transpose(1, 2)
            heard_TX[first : first + step].view(spread.shape).copy_(spread)
        return heard_TX

    def _hear_whole(self, qkv_TAD: Tensor, sequences: int, length: int) -> Tensor:
        """[B·K, G·L, D], of matrices [G·L, L] of scores for each key-value head of a sequence."""
        batch, rows = sequences * self._kv_heads, self._group * length
        queries, keys, values = (qkv_TAD.new_empty(batch, size, self._width) for size in (rows, length, length))
        spread_heads(_array(qkv_TAD), *self._turn, _array(queries), _array(keys), _array(values))
        scores = torch.bmm(queries, keys.transpose(1, 2))
        softmax_causal(_array(scores.view(-1, length)), self._scale)
        return torch.bmm(scores, values)


class _Norm:
    """Root-mean-square norm of every row."""

    def __init__(self, norm: Any) -> None:
        self._weight: Floats = norm.weight.float().numpy()
        self._eps = np.float32(norm.variance_epsilon)

    def __call__(self, x_TF: Tensor) -> Tensor:
        out_TF = torch.empty_like(x_TF)
        normalise_rows(_array(x_TF), self._weight, self._eps, _array(out_TF))
        return out_TF


def _head_norms(attention: Any) -> tuple[Floats, Floats, np.float32]:
    """Weights of the norms of queries and keys, none where the architecture has no such norm, and their epsilon."""
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    if q_norm is None or k_norm is None:
        return _NO_NORM, _NO_NORM, np.float32(0)
    return q_norm.weight.float().numpy(), k_norm.weight.float().numpy(), np.float32(q_norm.variance_epsilon)


def _rotation(embedding: Any, positions: int) -> tuple[Floats, Floats]:
    """cos and sin [positions, D] by the model's own rotary embedding; `sin` carries the sign of the half-rotation."""
    cos_1PD, sin_1PD = embedding(torch.empty(1, dtype=torch.float32), torch.arange(positions)[None])
    low, high = sin_1PD[0].chunk(2, -1)
    return cos_1PD[0].contiguous().numpy(), torch.cat((-low, high), -1).numpy()


def _joined(parameters: list[torch.nn.Parameter]) -> Tensor:
    """One matrix of several, which become views of it."""
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, piece in zip(parameters, torch.split(whole, [len(parameter) for parameter in parameters]), strict=True):
        parameter.data = piece
    return whole


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")  # noqa: SLF001
    return y


def _linear_with(x: Tensor, linear: Any, operation: str, other: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, linear.weight, linear.bias, operation)  # noqa: SLF001
    return y


def _array(tensor: Tensor) -> Numbers:
    """float32, or bfloat16 as its bits; the same memory."""
    array: Numbers = (tensor if tensor.dtype == torch.float32 else tensor.view(torch.uint16)).numpy()
    return array
