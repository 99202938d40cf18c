"""What must be known of a model before a server is asked: /model_info does not say it, so it is read from the model's directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # config.json is untyped

from common.errors import ConfigError

_ENDLESS = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The ids that exist, and the most tokens of a sequence."""

    vocabulary: int
    context: int
    stops: tuple[int, ...] = ()  # end-of-sequence ids of config.json and generation_config.json


def read_shape(directory: Path) -> ModelShape:
    """Raises ConfigError for a directory without a model's configuration."""
    values = _json_of(directory / "config.json")
    if values is None:
        raise ConfigError(
            f"{directory} has no config.json that can be read: give the Hugging Face directory of the model that the servers hold"
        )
    text = values.get("text_config") or values
    vocabulary = text.get("vocab_size")
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise ConfigError(f"{directory / 'config.json'} has no vocab_size: without it no request can be checked before it is sent")
    stops: set[int] = set()
    for source in (text, _json_of(directory / "generation_config.json") or {}):
        listed = source.get("eos_token_id")
        stops.update(listed if isinstance(listed, list) else [listed] if isinstance(listed, int) else [])
    return ModelShape(vocabulary, text.get("max_position_embeddings") or _ENDLESS, tuple(sorted(stops)))


def _json_of(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
