"""From the configuration to a teacher on servers. No connection is made before the first score."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.config import RunConfig
from common.sglang.keys import read_keys
from common.sglang.pool import ServerPool, limits_of
from common.sglang.shape import read_shape
from scorers.teachers.sglang.same import SameModel
from scorers.teachers.sglang.teacher import SglangTeacher
from scorers.teachers.torch.digest import weights_digest


def open_sglang_teacher(config: RunConfig, name: str) -> SglangTeacher:
    """Raises ConfigError."""
    section = config.teachers[name]
    shape = read_shape(section.path)
    digest, vocabulary = _digest(section.path), read_shape(config.model.student).vocabulary
    same = SameModel(name=name, shape=shape, digest=digest, vocabulary=vocabulary, deadline_s=section.deadline_s)
    pool = ServerPool(
        who=f"teacher {name}",
        urls=section.urls,
        keys=read_keys(section, f"teachers.{name}"),
        limits=limits_of(section),
        shape=shape,
        prepare=same.prepare,
    )
    return SglangTeacher(
        name=name,
        pool=pool,
        shape=shape,
        digest=digest,
        top_k=section.top_k,
        top_vocabulary=vocabulary,
    )


def _digest(directory: Path) -> str:
    """Of the weights where they are here too; else of the configuration, and it says so."""
    if any(directory.glob("*.safetensors")):
        return weights_digest(directory)
    return f"config-sha256:{hashlib.sha256((directory / 'config.json').read_bytes()).hexdigest()}"
