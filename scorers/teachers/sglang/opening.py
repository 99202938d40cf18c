"""From the configuration to a teacher on servers. No connection is made before the first score."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.config import RunConfig
from common.sglang.keys import read_keys
from common.sglang.pool import ServerPool, limits_of
from common.sglang.shape import read_shape
from scorers.teachers.sglang.teacher import SglangTeacher
from scorers.teachers.torch.digest import weights_digest


def open_sglang_teacher(config: RunConfig, name: str) -> SglangTeacher:
    """Raises ConfigError."""
    section = config.teachers[name]
    shape = read_shape(section.path)
    pool = ServerPool(
        who=f"teacher {name}",
        urls=section.urls,
        keys=read_keys(section, f"teachers.{name}"),
        limits=limits_of(section),
        shape=shape,
    )
    return SglangTeacher(
        name=name,
        pool=pool,
        shape=shape,
        digest=_digest(section.path),
        top_k=section.top_k,
        top_vocabulary=read_shape(config.model.student).vocabulary,
    )


def _digest(directory: Path) -> str:
    """Of the weights where they are here too; else of the configuration, and it says so."""
    if any(directory.glob("*.safetensors")):
        return weights_digest(directory)
    return f"config-sha256:{hashlib.sha256((directory / 'config.json').read_bytes()).hexdigest()}"
