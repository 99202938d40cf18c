"""Reads a student from a Hugging Face directory. What comes back is a causal LM whose every parameter came from the files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from common.errors import ConfigError
from producers.engines.torch import attention


@dataclass(frozen=True, slots=True)
class Student:
    """A model ready to decode. `model` is Any because transformers has no types."""

    model: Any
    vocabulary: int  # rows of the input embedding
    context: int  # most tokens of prompt + answer
    stops: tuple[int, ...]  # end-of-sequence ids of config and generation config
    dtype: torch.dtype
    device: torch.device


def load_student(directory: Path, *, dtype: torch.dtype, device: torch.device) -> Student:
    """Raises ConfigError, in one sentence, for a directory this engine cannot sample from."""
    if not (directory / "config.json").is_file():
        raise ConfigError(f"model.student = {directory} is no model directory: it needs config.json, weights and tokenizer")
    config = _read_config(directory)
    model = _read_model(directory, dtype).to(device).eval().requires_grad_(requires_grad=False)
    return Student(
        model=model,
        vocabulary=model.get_input_embeddings().num_embeddings,
        context=_context(config),
        stops=_stops(config, model.generation_config),
        dtype=dtype,
        device=device,
    )


def _read_config(directory: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(directory)
    except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"model.student = {directory} is of an unsupported architecture: {_first_line(error)}") from error
    names = config.architectures or []
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if names and not known.intersection(names):
        raise ConfigError(f"model.student = {directory} is not a causal language model but {names[0]}: name one that generates text")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"model.student = {directory} is not a causal language model but a {config.model_type}: name one that generates text"
        )
    return config


def _read_model(directory: Path, dtype: torch.dtype) -> Any:
    transformers_logging.disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=attention.NAME, output_loading_info=True, local_files_only=True
        )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        why = _first_line(error)
        raise ConfigError(f"model.student = {directory} cannot be loaded ({why}): name a complete model directory") from error
    absent = sorted(str(name) for name in [*loading["missing_keys"], *loading["mismatched_keys"]])
    if absent:
        raise ConfigError(f"model.student = {directory} lacks weights or has them in another shape: {', '.join(absent[:3])}")
    return model


def _context(config: Any) -> int:
    """Within a sliding window, sliding attention is full attention; beyond it this engine does not go."""
    text = config.get_text_config()
    context: int = getattr(text, "max_position_embeddings", None) or 1 << 30
    layers = getattr(text, "layer_types", None) or ["sliding_attention"]
    window: int = getattr(text, "sliding_window", None) or 0
    slides = window > 0 and any(layer != "full_attention" for layer in layers) and getattr(text, "use_sliding_window", True)
    return min(context, window) if slides else context


def _stops(config: Any, generation_config: Any) -> tuple[int, ...]:
    stops: set[int] = set()
    for source in (config.get_text_config(), generation_config):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            stops.update([ids] if isinstance(ids, int) else ids)
    return tuple(sorted(stops))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
