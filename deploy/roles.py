"""Which processes a run on one machine has, and with what environment and priority they start."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.config import RunConfig

_MALLOC_THRESHOLD = str(1 << 30)
"""Freed memory serves the next forward pass instead of going back to the kernel: +20 % there. Read before Python starts."""

_SHAPES = "128"
"""oneDNN keeps what it compiled for a shape, PyTorch's layer above it keeps that with a scratchpad as large as the weights; ever new shapes
fill their defaults of 1,024 with gigabytes, and are no faster for it."""


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """One process to keep alive."""

    role: str
    index: int
    nice: int
    arguments: tuple[str, ...] = ()
    owner: str = ""  # of a server: whose
    program: tuple[str, ...] = ()  # of a server

    @property
    def name(self) -> str:
        """As it appears in messages and as its log is named."""
        return "-".join(part for part in (self.owner, self.role, str(self.index)) if part)

    def command(self, config_file: Path, *more: str) -> list[str]:
        """The role's own command line, which works by hand as well."""
        if self.program:
            return list(self.program)
        module = "learner" if self.role == "learner" else f"{self.role}s"
        return [sys.executable, "-m", module, "--config", str(config_file), *self.arguments, *more]


def role_specs(config: RunConfig, scorers: Mapping[str, int] | None = None) -> list[RoleSpec]:
    """The learner first: it has the most to do before the others are needed. `scorers`: of each teacher, scorer.count where it says none;
    a teacher's n-th scorer has the same name however many there are."""
    specs = [RoleSpec("learner", 0, config.learner.nice)]
    specs += [RoleSpec("producer", index, config.producer.nice) for index in range(config.producer.count)]
    before, some = len(specs), len(config.teachers)
    for number, name in enumerate(config.teachers):
        count = (scorers or {}).get(name, config.scorer.count)
        specs += [RoleSpec("scorer", number + some * n, config.scorer.nice, ("--teacher", name)) for n in range(count)]
    specs[before:] = sorted(specs[before:], key=lambda spec: spec.index)
    places = [before + spec.index if spec.role == "scorer" else place for place, spec in enumerate(specs)]
    return [replace(spec, arguments=spec.arguments + _metrics_port(config, place)) for place, spec in zip(places, specs, strict=True)]


def _metrics_port(config: RunConfig, place: int) -> tuple[str, ...]:
    """On one machine a fixed port is the first of as many as there are processes."""
    port = config.service.metrics_port
    return ("--set", f"service.metrics_port={port + place}") if port else ()


def environment(config: RunConfig) -> Mapping[str, str]:
    """Set for every role."""
    return {
        "OMP_NUM_THREADS": str(config.service.torch_threads),
        "MALLOC_MMAP_THRESHOLD_": _MALLOC_THRESHOLD,
        "MALLOC_TRIM_THRESHOLD_": _MALLOC_THRESHOLD,
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": _SHAPES,
        "LRU_CACHE_CAPACITY": _SHAPES,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
