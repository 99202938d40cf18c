"""Whatever can score a rollout: one adapter per kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.config import RunConfig
from common.pulse import Pulse

if TYPE_CHECKING:
    from scorers.teachers.base import Teacher


def open_teacher(config: RunConfig, name: str, pulse: Pulse) -> Teacher:
    """Loads teacher `name`; raises ConfigError with one sentence that says what to do."""
    match config.teachers[name].kind:
        case "torch":
            from scorers.teachers.torch.opening import open_torch_teacher

            return open_torch_teacher(config, name, pulse)
        case "sglang":
            from scorers.teachers.sglang.opening import open_sglang_teacher

            return open_sglang_teacher(config, name)


def could_be_the_student(config: RunConfig, name: str) -> bool:
    """Whether the model directories describe models of the same shape; raises ConfigError where one of them is no model's."""
    from scorers.teachers.alike import same_shape

    return same_shape(config.model.student, config.teachers[name].path)


def open_student(config: RunConfig, name: str, pulse: Pulse) -> Teacher:
    """The student, computed as teacher `name` is; the start-up probe compares them."""
    from scorers.teachers.torch.opening import open_student_as_teacher

    return open_student_as_teacher(config, name, pulse)
