"""What a learner rank needs, by calculation: an orientation, not a promise."""

from __future__ import annotations

from common.config import RunConfig
from learner.megatron.architecture import Architecture

_BYTES = {"float32": 4, "bfloat16": 2}
_GRADIENT = 4
"""Bytes per parameter: fp32 whatever the model computes in."""
_OPTIMIZER = {"float32": 8, "bfloat16": 12}
"""Bytes per parameter: Adam's two moments, and for bfloat16 the master weight. The replicas divide them among them."""
_LOGITS = 150 << 20
"""The output layer works in chunks of this, whatever the vocabulary (docs/benchmarks.md)."""
_PROCESS = 600 << 20
"""Python with torch and Megatron-core."""


def in_experts(a: Architecture) -> int:
    """How many of the model's numbers the experts have."""
    return 3 * a.hidden * a.experts.intermediate * a.experts.count * len(a.experts.layers) if a.experts else 0


def parameters(a: Architecture) -> int:
    """How many numbers the model has."""
    attention = a.hidden * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    mlp = 3 * a.hidden * a.intermediate
    routers = len(a.experts.layers) * (a.experts.count * a.hidden - mlp) if a.experts else 0
    return a.layers * (attention + mlp + 2 * a.hidden) + in_experts(a) + routers + a.vocabulary * a.hidden * (1 if a.tied else 2) + a.hidden


def in_adapters(config: RunConfig, a: Architecture) -> int:
    """How many numbers the adapters have (learner/megatron/lora.py)."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    both_sides = {
        "linear_qkv": a.hidden + queries + 2 * keys,
        "linear_proj": queries + a.hidden,
        "linear_fc1": a.hidden + 2 * a.intermediate,
        "linear_fc2": a.intermediate + a.hidden,
    }
    return a.layers * config.learner.lora_rank * sum(both_sides[target] for target in config.learner.lora_targets)


def learner_bytes(config: RunConfig, a: Architecture) -> int:
    """Of one rank: its share of the model's state, and the activations of one micro-batch."""
    learner = config.learner
    inner = max(a.intermediate, a.experts.chosen * (a.experts.intermediate + a.hidden) if a.experts else 0)
    layer = 10 * a.hidden + 3 * inner + 4 * a.head_dim * (a.heads + a.kv_heads)
    width = a.layers * a.hidden + layer if learner.recompute else a.layers * layer
    tokens = min(learner.micro_batch_tokens, learner.batch_size * (config.data.max_prompt_tokens + config.sampling.max_new_tokens))
    stages, tensor = learner.pipeline_parallel, learner.tensor_parallel
    divided = learner.expert_parallel if learner.expert_parallel > 1 else tensor
    if learner.lora_rank:
        state = parameters(a) // tensor * _BYTES[config.model.dtype] + _state(config, in_adapters(config, a), 1)
    else:
        state = _state(config, parameters(a) - in_experts(a), tensor) + _state(config, in_experts(a), divided)
    shared = tensor if learner.sequence_parallel or not learner.recompute else 1
    kept = tokens * width * _BYTES[config.model.dtype] // (shared * learner.context_parallel)
    return (state + kept) // stages + _LOGITS + _PROCESS


def _state(config: RunConfig, count: int, divided: int) -> int:
    """Of so many numbers of all stages, divided over so many ranks of each."""
    learner, dtype = config.learner, config.model.dtype
    replicas = max(1, learner.ranks // (learner.pipeline_parallel * divided))
    return count // divided * (_BYTES[dtype] + _GRADIENT) + count // divided * _OPTIMIZER[dtype] // replicas


def memory_here() -> tuple[int, str]:
    """Free bytes where a rank on this machine would work, and what that is."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    return psutil.virtual_memory().available, "this machine"
