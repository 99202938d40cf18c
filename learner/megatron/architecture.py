"""What a Hugging Face config.json says of a decoder, checked against what this learner can train exactly.

Guarantee: an `Architecture` is complete; whatever would change the logits and is not in it (sliding windows, other
activations, quantisation) is refused with a ConfigError that says so, never ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from learner.megatron.rope import Rope, read_rope

_FAMILIES = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
}
_Json = Mapping[str, Any]  # any JSON value


@dataclass(frozen=True, slots=True)
class Experts:
    """What stands in place of the MLP in some layers: each token goes to the `chosen` most likely of `count` experts."""

    count: int
    chosen: int
    intermediate: int
    normalised: bool  # the chosen ones' shares sum to 1
    layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder: RMSNorm, rotary positions, grouped-query attention, gated SiLU, in an MLP or in experts."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    epsilon: float
    rope: Rope
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    experts: Experts | None = None


def read_architecture(directory: Path) -> Architecture:
    """Raise ConfigError when the directory holds no model that this learner can train."""
    file = directory / "config.json"
    try:
        config: _Json = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{directory} is no model directory: it has no config.json") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    family = _family(config, directory)
    _refuse_what_is_not_modelled(config, family, directory)
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Architecture(
        family=family,
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        positions=int(config["max_position_embeddings"]),
        epsilon=float(config["rms_norm_eps"]),
        rope=read_rope(config, directory),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2",
        qk_norm=family in {"qwen3", "qwen3_moe"},
        experts=_experts(config) if family == "qwen3_moe" else None,
    )


def _experts(config: _Json) -> Experts:
    """transformers 5 writes `num_local_experts` where version 4 wrote `num_experts`."""
    dense, every = set(config.get("mlp_only_layers") or ()), int(config.get("decoder_sparse_step") or 1)
    return Experts(
        count=int(config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]),
        chosen=int(config["num_experts_per_tok"]),
        intermediate=int(config["moe_intermediate_size"]),
        normalised=bool(config.get("norm_topk_prob", False)),
        layers=frozenset(layer for layer in range(int(config["num_hidden_layers"])) if layer not in dense and (layer + 1) % every == 0),
    )


def _family(config: _Json, directory: Path) -> str:
    names = config.get("architectures") or ["none"]
    family = _FAMILIES.get(names[0])
    if family is None:
        raise ConfigError(f"{directory} holds {names[0]}; the learner trains {', '.join(_FAMILIES)}")
    return family


def _refuse_what_is_not_modelled(config: _Json, family: str, directory: Path) -> None:
    refused = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "sliding_window": family == "mistral" and (config.get("sliding_window") or math.inf) < config["max_position_embeddings"],
        "layer_types": any(kind != "full_attention" for kind in config.get("layer_types") or ()),
        "num_experts_per_tok": config.get("num_experts_per_tok") == 1 and bool(config.get("norm_topk_prob")),  # no gradient for the router
        "quantization_config": bool(config.get("quantization_config")),
        "partial_rotary_factor": float(config.get("partial_rotary_factor") or 1.0) != 1.0,
    }
    for key, wrong in refused.items():
        if wrong:
            raise ConfigError(f"{directory}: the learner cannot train a model with {key} = {config[key]}")
