"""Tokens per CPU-second of each stage: ours, the same work in plain transformers, and the linear layers alone, each in its own process.

A round runs every stage once; figures are medians over the rounds. The machine's noise meets both sides alike, so the ratio holds where
the figures themselves do not.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # JSON values

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A row: `ours`, `plain` and `matrices` are the arguments of `python -m benchmarks.…`."""

    name: str
    floor: int
    ours: tuple[str, ...]
    plain: tuple[str, ...]
    matrices: tuple[str, ...]


@dataclass(slots=True)
class Rate:
    """What the rounds gave."""

    stage: str
    floor: int
    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    matrices: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Medians and every round."""
        ours, plain = statistics.median(self.ours), statistics.median(self.plain)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(self.ours, self.plain, strict=True))
        return {
            "stage": self.stage,
            "floor": self.floor,
            "ours": round(ours),
            "plain": round(plain),
            "matrices": round(statistics.median(self.matrices)),
            "ratio": round(ratio, 2),
            "reached": ours >= self.floor,
            "rounds": {"ours": self.ours, "plain": self.plain, "matrices": self.matrices},
        }


def stages(*, quick: bool) -> list[Stage]:
    """All rows; `quick` only shows that everything works."""
    samples, steps, repeats, batches = (256, 5, 1, 1) if quick else (2000, 40, 3, 8)
    plain = ("--repetitions", str(repeats), "--batches", str(batches))
    engine = ("bench_engine", "--slots", "128", "--samples", str(samples), "--rounds", str(repeats))
    teacher = ("bench_teacher", "--repetitions", str(repeats))
    bf16 = ("--dtype", "bfloat16")
    return [
        Stage("engine, 128 slots (generated tokens)", 40_000, engine, ("plain", "engine", *plain), ("matrices", "engine")),
        Stage(
            "teacher fp32, top-8 (prompt + response)",
            55_000,
            (*teacher, "--dtype", "float32"),
            ("plain", "teacher", *plain),
            ("matrices", "teacher"),
        ),
        Stage(
            "teacher bf16, top-8 (prompt + response)",
            85_000,
            (*teacher, *bf16),
            ("plain", "teacher", *bf16, *plain),
            ("matrices", "teacher", *bf16),
        ),
        Stage(
            "learner, whole step (prompt + response)",
            28_000,
            ("bench_learner", "--steps", str(steps)),
            ("plain", "learner", *plain),
            ("matrices", "learner"),
        ),
    ]


def measure(rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """All stages, `rounds` times; who goes first changes with every round."""
    todo = stages(quick=quick)
    found = {stage.name: Rate(stage.name, stage.floor) for stage in todo}
    for turn in range(rounds):
        for stage in todo:
            pairs = [(found[stage.name].ours, stage.ours), (found[stage.name].plain, stage.plain)]
            for rates, arguments in pairs if turn % 2 == 0 else pairs[::-1]:
                rates.append(_tokens_per_cpu_s(_run(arguments)))
            found[stage.name].matrices.append(_tokens_per_cpu_s(_run(stage.matrices)))
    return [rate.to_json() for rate in found.values()]


def _run(arguments: Sequence[str]) -> Mapping[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    printed: Mapping[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return printed


def _tokens_per_cpu_s(printed: Mapping[str, Any]) -> float:
    """The one figure: the benchmarks lay it out in their own ways."""
    if "results" in printed:
        printed = printed["results"][0]
    elif "slots_128" in printed:
        printed = printed["slots_128"]
    return float(printed["tokens_per_cpu_s"])
