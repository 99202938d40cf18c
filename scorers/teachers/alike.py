"""Whether a teacher could be the student itself, told from their directories alone.

Guarantee: False only where the two say different shapes. What a config.json leaves out may be anything. No torch here: a scorer whose
teacher is held by servers starts without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any  # config.json is untyped

from common.errors import ConfigError

_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def same_shape(one: Path, other: Path) -> bool:
    """Whether the two directories could hold the same model; raises ConfigError where one of them holds none."""
    mine, theirs = (_text_config(directory) for directory in (one, other))
    return all(mine.get(key) is None or theirs.get(key) is None or mine[key] == theirs[key] for key in _SHAPE)


def _text_config(directory: Path) -> dict[str, Any]:
    try:
        values = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{directory} is no model directory (it has no config.json): give the path of a Hugging Face model")
    return values.get("text_config") or values
