"""Whatever can score a rollout: one adapter per kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.config import RunConfig
from common.errors import ConfigError
from common.pulse import Pulse

if TYPE_CHECKING:
    from scorers.teachers.base import Teacher


def open_teacher(config: RunConfig, name: str, pulse: Pulse) -> Teacher:
    """Loads teacher `name`; raises ConfigError with one sentence that says what to do."""
    if name not in config.teachers:
        raise ConfigError(f"there is no teacher {name!r}: this run has {', '.join(sorted(config.teachers))}")
    match config.teachers[name].kind:
        case "torch":
            from scorers.teachers.torch.opening import open_torch_teacher

            return open_torch_teacher(config, name, pulse)
        case "sglang":
            raise ConfigError(f"teachers.{name}.kind = 'sglang' is not in this version yet: use 'torch'")
