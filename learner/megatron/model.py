"""The student as a Megatron model that ends at its hidden states.

Guarantee: the same parameters and hidden states as the Hugging Face model of the same architecture. The output layer is a
weight, not a call: log-probabilities are taken from it in chunks (logprobs.py).
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from common.errors import ConfigError
from learner.megatron.architecture import Architecture, Experts
from learner.megatron.attention import PackedSequences, PaddedAttention
from learner.megatron.mapping import padded, rules
from learner.megatron.microbatch import MicroBatch
from learner.megatron.norm import RMSNorm
from learner.megatron.router import Router
from learner.megatron.rows import take_rows
from learner.megatron.stages import Stage, experts_of, megatron_layout, stages
from learner.megatron.swiglu import SwiGLU
from learner.training import TrainerSettings


def has_transformer_engine() -> bool:
    """Whether layers come from Transformer Engine; it needs CUDA."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


class LastLayer(TransformerLayer):  # type: ignore[misc]
    """Drops the rows that nobody predicts from as soon as attention has seen them, before the last MLP."""

    def forward(self, *args: Any, packed_seq_params: PackedSequences, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Hidden states [N, 1, H] -> [R, 1, H]."""
        hidden, _ = self._forward_attention(*args, packed_seq_params=packed_seq_params, **kwargs)
        return self._forward_mlp(take_rows(hidden, packed_seq_params.rows_R)), None


class Student(GPTModel):  # type: ignore[misc]
    """One stage of a GPTModel; the last one returns the hidden states of the trained rows, [R, H], after the final norm."""

    stage: Stage

    def _postprocess(self, hidden_states: torch.Tensor, *_: object, packed_seq_params: PackedSequences, **__: object) -> torch.Tensor:
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:  # every rank needs all rows, and finds the whole gradient of them
            whole: torch.Tensor = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
            hidden_states = take_rows(whole, packed_seq_params.rows_R)
        return hidden_states.squeeze(1)

    def hidden_states(self, batch: MicroBatch) -> torch.Tensor:
        """Of the last stage the hidden states of the rows that predict trained tokens, [R, H]; of the others those of all tokens."""
        hidden_RH: torch.Tensor = self(input_ids=batch.input_ids_1N, position_ids=None, attention_mask=None, packed_seq_params=batch.packed)
        return hidden_RH

    @property
    def output_weight(self) -> torch.Tensor:
        """This rank's rows of the output layer, [V/tp, H], padding rows included; the embedding when tied."""
        tied: bool = self.share_embeddings_and_output_weights
        weight: torch.Tensor = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return weight


def build_student(
    architecture: Architecture, settings: TrainerSettings, *, dtype: torch.dtype, stage_index: int = 0, expert_rank: int = 0
) -> tuple[Student, TransformerConfig]:
    """An uninitialised student, or a stage of it, for this rank; ConfigError where the sizes cannot be divided."""
    size = settings.tensor_parallel
    if architecture.kv_heads % size:
        raise ConfigError(f"{architecture.kv_heads} key/value heads cannot be divided over {size} tensor-parallel ranks")
    if architecture.experts and size > 1 and not settings.sequence_parallel:
        raise ConfigError("a model with experts is divided over tensor-parallel ranks by tokens too: set learner.sequence_parallel = true")
    if not architecture.experts and settings.expert_parallel > 1:
        raise ConfigError(f"a {architecture.family} student has no experts to divide over ranks: set learner.expert_parallel = 1")
    stage = stages(architecture.layers, settings.pipeline_parallel)[stage_index]
    if architecture.experts and settings.expert_parallel > 1:
        stage = replace(stage, experts=experts_of(architecture.experts.count, expert_rank, settings.expert_parallel))
    config = _configuration(architecture, settings, dtype)
    student = Student(
        config=config,
        transformer_layer_spec=_layers(architecture, stage, drop_rows=not settings.sequence_parallel),
        vocab_size=padded(architecture.vocabulary, size),
        pre_process=stage.first,
        post_process=stage.last,
        max_sequence_length=architecture.positions,
        share_embeddings_and_output_weights=architecture.tied,
        position_embedding_type="rope" if has_transformer_engine() else "none",  # PaddedAttention rotates by itself
        rotary_base=architecture.rope.theta,
    )
    student.stage = stage
    _scale_positions(student, architecture)
    _mark_divided(student, architecture)
    return student, config


def _scale_positions(student: Student, architecture: Architecture) -> None:
    """Megatron's own rotary embedding, where it is used, turns with the frequencies of the configuration."""
    rotary: Any = getattr(student, "rotary_pos_emb", None)
    if rotary is not None:
        rotary.inv_freq = architecture.rope.frequencies(architecture.head_dim).to(rotary.inv_freq.device)


def _mark_divided(student: Student, architecture: Architecture) -> None:
    """Tell Megatron which parameters other ranks hold the rest of: the gradient norm counts the others once.

    It marks them itself while it initialises them, which is left out here because every parameter is loaded.
    """
    parameters = dict(student.named_parameters())
    for rule in rules(architecture, fused_norms=has_transformer_engine(), stage=student.stage):
        dimension, parameter = rule.layout.divided_dimension, parameters[rule.megatron]
        if dimension is not None and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dimension, stride=1)


def _configuration(architecture: Architecture, settings: TrainerSettings, dtype: torch.dtype) -> TransformerConfig:
    config = TransformerConfig(
        num_layers=architecture.layers,
        hidden_size=architecture.hidden,
        ffn_hidden_size=architecture.intermediate,
        num_attention_heads=architecture.heads,
        num_query_groups=architecture.kv_heads,
        kv_channels=architecture.head_dim,
        layernorm_epsilon=architecture.epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=not has_transformer_engine(),  # Megatron's name for "the spec brings the activation"
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=settings.tensor_parallel,
        sequence_parallel=settings.sequence_parallel,
        context_parallel_size=settings.context_parallel,
        cp_comm_type="p2p" if settings.context_parallel > 1 else None,  # of Transformer Engine's attention
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,
        calculate_per_token_loss=True,
        apply_rope_fusion=has_transformer_engine(),
        **({"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1} if settings.recompute else {}),
        **_pipeline(architecture.layers, settings.pipeline_parallel)
        | _experts(architecture.experts, architecture.layers, settings.expert_parallel),
    )
    if architecture.experts and settings.expert_parallel == 1:
        config.moe_token_dispatcher_type = "allgather"  # noqa: S105 - all ranks of a layer have as many tokens, as it needs
    return config


def _experts(experts: Experts | None, layers: int, ranks: int) -> dict[str, Any]:
    """Of Megatron's configuration. No loss for balance: the student is to agree with its teacher, whichever experts that takes."""
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": experts.intermediate,
        "moe_router_topk": experts.chosen,
        "moe_router_pre_softmax": not experts.normalised,
        "moe_router_load_balancing_type": "none",
        **({} if len(experts.layers) == layers else {"moe_layer_freq": [int(index in experts.layers) for index in range(layers)]}),
        **({"expert_model_parallel_size": ranks, "expert_tensor_parallel_size": 1} if ranks > 1 else {}),
        "moe_token_dispatcher_type": "alltoall",  # ranks that exchange tokens have their own numbers of them
    }


def _pipeline(layers: int, count: int) -> dict[str, Any]:
    """Of Megatron's configuration. Micro-batches are packed, hence of any length: stages tell each other the shape."""
    if count == 1:
        return {}
    return {
        "pipeline_model_parallel_size": count,
        "pipeline_model_parallel_layout": megatron_layout(layers, count),
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",  # what Megatron asks for beside lengths that vary, with or without experts
    }


def _layers(architecture: Architecture, stage: Stage, *, drop_rows: bool) -> TransformerBlockSubmodules:
    experts = architecture.experts
    layers = [_layer(architecture, experts.count if experts and index in experts.layers else None) for index in stage.layers]
    if stage.last and drop_rows:
        layers[-1] = ModuleSpec(module=LastLayer, submodules=layers[-1].submodules)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=TENorm if has_transformer_engine() else RMSNorm)


def _layer(architecture: Architecture, experts: int | None) -> ModuleSpec:
    if has_transformer_engine():
        layer: ModuleSpec = get_gpt_layer_with_transformer_engine_spec(num_experts=experts, qk_layernorm=architecture.qk_norm)
        return layer
    layer = get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=architecture.qk_norm, normalization="RMSNorm")
    parts: TransformerLayerSubmodules = layer.submodules
    attention: Any = parts.self_attention.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    mlp: Any = parts.mlp
    if experts:
        mlp.submodules.router = Router
        mlp = mlp.submodules.experts
    mlp.submodules.activation_func = SwiGLU
    attention.core_attention = PaddedAttention
    if architecture.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer
