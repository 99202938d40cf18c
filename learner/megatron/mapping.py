"""Hugging Face tensors <-> Megatron tensors, in both directions, for any tensor-parallel size.

Guarantee: `join(rule, shards)` undoes `split(rule, ...)` bit for bit: both only move bytes. The table is the whole mapping;
no position of a rotary dimension moves, because Megatron without interleaving rotates halves as Hugging Face does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch

from learner.megatron.architecture import Architecture
from learner.megatron.stages import Stage


class Layout(Enum):
    """How one Megatron tensor is made of Hugging Face tensors and divided over tensor-parallel ranks."""

    REPLICATED = "the same on every rank"
    VOCABULARY = "filled up with zeros until every rank has as many rows, divided along dimension 0"
    COLUMNS = "divided along dimension 1"
    QKV = "per group of query heads: its queries, its key, its value; groups divided along dimension 0"
    GATE_UP = "each rank's part of the gate, then its part of the up projection"

    @property
    def divided_dimension(self) -> int | None:
        """The dimension that tensor-parallel ranks divide among them."""
        return None if self is Layout.REPLICATED else int(self is Layout.COLUMNS)


@dataclass(frozen=True, slots=True)
class Rule:
    """One Megatron parameter and the Hugging Face tensors it is made of."""

    megatron: str
    hugging_face: tuple[str, ...]
    layout: Layout
    alone: bool = False  # of an expert that one rank holds, whatever tensor-parallel ranks divide


def rules(architecture: Architecture, *, fused_norms: bool, stage: Stage | None = None) -> Iterator[Rule]:
    """Every parameter of the stage, or of the model; `fused_norms` names them as Transformer Engine's fused layers do.

    A last stage that is not the first has a copy of the tied embedding, which learns as the embedding does.
    """
    stage = stage or Stage(range(architecture.layers))
    if stage.first:
        yield Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Layout.VOCABULARY)
    for place, index in enumerate(stage.layers):
        yield from _layer_rules(architecture, place, index, stage.experts, fused_norms=fused_norms)
    if not stage.last:
        return
    yield Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Layout.REPLICATED)
    if not architecture.tied:
        yield Rule("output_layer.weight", ("lm_head.weight",), Layout.VOCABULARY)
    elif not stage.first:
        yield Rule("output_layer.weight", ("model.embed_tokens.weight",), Layout.VOCABULARY)


def _layer_rules(architecture: Architecture, place: int, index: int, here: range | None, *, fused_norms: bool) -> Iterator[Rule]:
    ours, theirs = f"decoder.layers.{place}", f"model.layers.{index}"
    attention, mlp = f"{ours}.self_attention", f"{ours}.mlp"
    input_norm = f"{attention}.linear_qkv.layer_norm_weight" if fused_norms else f"{ours}.input_layernorm.weight"
    experts = architecture.experts.count if architecture.experts and index in architecture.experts.layers else 0
    mlp_norm = f"{mlp}.linear_fc1.layer_norm_weight" if fused_norms and not experts else f"{ours}.pre_mlp_layernorm.weight"
    yield Rule(input_norm, (f"{theirs}.input_layernorm.weight",), Layout.REPLICATED)
    for kind in ("weight", "bias") if architecture.qkv_bias else ("weight",):
        qkv = tuple(f"{theirs}.self_attn.{name}_proj.{kind}" for name in "qkv")
        yield Rule(f"{attention}.linear_qkv.{kind}", qkv, Layout.QKV)
    for name in "qk" if architecture.qk_norm else "":
        norm = (f"{theirs}.self_attn.{name}_norm.weight",)
        yield Rule(f"{attention}.{name}_layernorm.weight", norm, Layout.REPLICATED)
    yield Rule(f"{attention}.linear_proj.weight", (f"{theirs}.self_attn.o_proj.weight",), Layout.COLUMNS)
    yield Rule(mlp_norm, (f"{theirs}.post_attention_layernorm.weight",), Layout.REPLICATED)
    if not experts:
        yield from _mlp_rules(mlp, f"{theirs}.mlp")
        return
    yield Rule(f"{mlp}.router.weight", (f"{theirs}.mlp.gate.weight",), Layout.REPLICATED)
    for local, expert in enumerate(here or range(experts)):
        for rule in _mlp_rules(f"{mlp}.experts.local_experts.{local}", f"{theirs}.mlp.experts.{expert}"):
            yield replace(rule, alone=here is not None)


def _mlp_rules(ours: str, theirs: str) -> Iterator[Rule]:
    yield Rule(f"{ours}.linear_fc1.weight", (f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"), Layout.GATE_UP)
    yield Rule(f"{ours}.linear_fc2.weight", (f"{theirs}.down_proj.weight",), Layout.COLUMNS)


def padded(vocabulary: int, size: int) -> int:
    """Rows of the embeddings where `size` tensor-parallel ranks hold as many each."""
    return -(-vocabulary // size) * size


def split(rule: Rule, parts: Sequence[torch.Tensor], architecture: Architecture, *, rank: int, size: int) -> torch.Tensor:
    """The share of tensor-parallel `rank` of `size`; `parts` are the rule's Hugging Face tensors in order."""
    match rule.layout:
        case Layout.REPLICATED:
            return parts[0]
        case Layout.VOCABULARY:
            missing = padded(architecture.vocabulary, size) - architecture.vocabulary
            return torch.nn.functional.pad(parts[0], (0, 0, 0, missing)).chunk(size, 0)[rank]
        case Layout.COLUMNS:
            return parts[0].chunk(size, 1)[rank]
        case Layout.GATE_UP:
            return torch.cat([part.chunk(size, 0)[rank] for part in parts])
        case Layout.QKV:
            groups = [part.reshape(architecture.kv_heads, -1, *part.shape[1:]) for part in parts]
            return torch.cat(groups, 1).chunk(size, 0)[rank].flatten(0, 1)


def join(rule: Rule, shards: Sequence[torch.Tensor], architecture: Architecture) -> Mapping[str, torch.Tensor]:
    """The rule's Hugging Face tensors from the shards of all tensor-parallel ranks, in rank order."""
    match rule.layout:
        case Layout.REPLICATED:
            parts = [shards[0]]
        case Layout.COLUMNS:
            parts = [shards[0] if len(shards) == 1 else torch.cat(list(shards), 1)]
        case Layout.VOCABULARY:
            whole = shards[0] if len(shards) == 1 else torch.cat(list(shards))
            parts = [whole[: architecture.vocabulary]]
        case Layout.GATE_UP:
            halves = [shard.chunk(2, 0) for shard in shards]
            parts = [torch.cat([half[side] for half in halves]) for side in (0, 1)]
        case Layout.QKV:
            parts = _ungroup(torch.cat(list(shards)), architecture)
    return dict(zip(rule.hugging_face, parts, strict=True))


def _ungroup(qkv: torch.Tensor, architecture: Architecture) -> list[torch.Tensor]:
    queries = architecture.heads // architecture.kv_heads * architecture.head_dim
    grouped = qkv.reshape(architecture.kv_heads, -1, *qkv.shape[1:])
    return [part.flatten(0, 1) for part in torch.split(grouped, [queries, architecture.head_dim, architecture.head_dim], 1)]
