"""From the configuration to a torch teacher, and to the student seen as a teacher (for the start-up probe)."""

from __future__ import annotations

from pathlib import Path

import torch

from common.config import RunConfig
from common.pulse import Pulse
from scorers.teachers.torch.digest import weights_digest
from scorers.teachers.torch.loading import load_causal_model, load_config_of
from scorers.teachers.torch.teacher import TorchTeacher

_ALONE = 1  # tokens of a batch: every sequence by itself, hence bit for bit the same in any company


def open_torch_teacher(config: RunConfig, name: str, pulse: Pulse) -> TorchTeacher:
    """Teacher `name`, on CUDA where there is one."""
    return _open(config, name, config.teachers[name].path, pulse)


def open_student_as_teacher(config: RunConfig, name: str, pulse: Pulse) -> TorchTeacher:
    """The student, computed as teacher `name` is."""
    return _open(config, name, config.model.student, pulse)


def _open(config: RunConfig, name: str, directory: Path, pulse: Pulse) -> TorchTeacher:
    torch.set_num_threads(config.service.torch_threads)
    section = config.teachers[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TorchTeacher(
        name=name,
        model=load_causal_model(directory, getattr(torch, section.dtype), device),
        digest=weights_digest(directory),
        top_k=section.top_k,
        top_vocabulary=load_config_of(config.model.student).get_text_config().vocab_size,
        batch_tokens=_ALONE if config.run.deterministic else config.scorer.batch_tokens,
        pulse=pulse,
    )
