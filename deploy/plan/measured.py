"""The rates of a run that was measured: what every role's CPU did by result.json, how long its answers were by the journal.

Torch workers: their CPU seconds are what a worker needs however many others share its cores. Where servers sample or score, the learner has
its device for itself and is measured by the clock; the servers' rates must be given. Raises ConfigError where it has measured nothing.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any  # JSON values

from common.config import RunConfig
from common.errors import ConfigError
from learner.batch import scored_of
from learner.directory import RunDirectory
from learner.metrics import read_metrics
from learner.surviving import surviving_records

_ENOUGH_LENGTHS = 4096
_ALONE = 0.06
"""Of a torch engine's rate with all slots, what it reaches with one answer (benchmarks/bench_engine.py --slots 1 128)."""
_FIRST_TOKEN = re.compile(r"samples with new weights  term=(\d+) step=(\d+) at=([\d.]+)")
_ON_SERVER = re.compile(r"^(\S+ \S+) .*server has new weights .*label=t(\d+)-s(\d+)-", re.MULTILINE)
_APART = ("startup", "checkpoint")
_MATHS = {"learner": ("forward", "backward", "optimizer"), "producer": ("prefill", "decode"), "scorer": ("forward",)}


def measured(config: RunConfig) -> dict[str, Any]:
    """As a rates file would have them."""
    directory = RunDirectory(config.directory)
    if not directory.config.exists():
        raise ConfigError(f"{config.directory} holds no run: give --from-run the directory runs/NAME of one that is finished")
    result = directory.finished()
    if result is None or not result.get("samples"):
        raise ConfigError(
            f"{config.directory} has no measurements yet: they are written when the run ends (give --rates, or --from-run a finished one)"
        )
    values: dict[str, Any] = {"answers": _answers(directory, result), "server_s": _server_s(result)}
    values["weights"] = _publication(directory)
    served = config.producer.kind == "sglang" or any(teacher.kind == "sglang" for teacher in config.teachers.values())
    values["learner"] = by_clock(read_metrics(directory.metrics)) if served else _rate(result, "learner", result["processed_tokens"])
    if config.producer.kind == "torch":
        values["student"] = _rate(result, "producer", result["tokens"] + _evaluated(result))
        values["student"] |= {"alone_tokens_per_s": values["student"]["tokens_per_s"] * _ALONE} if values["student"] else {}
    if all(teacher.kind == "torch" for teacher in config.teachers.values()):
        values["teacher"] = _rate(result, "scorer", result["processed_tokens"])
    return {name: value for name, value in values.items() if value}


def by_clock(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The learner's, where nobody shares its device: tokens by the seconds of its steps, as metrics.jsonl has them."""
    seconds = sum(line["seconds"] for line in lines)
    return {"tokens_per_s": sum(line["processed"] for line in lines) / seconds} if seconds else {}


def _answers(directory: RunDirectory, result: Mapping[str, Any]) -> dict[str, Any]:
    lengths: list[int] = []
    prompts = 0
    for record in surviving_records(directory):
        for scored in scored_of(record):
            lengths.append(len(scored.rollout.completion.response_ids))
            prompts += len(scored.rollout.ticket.prompt_ids)
        if len(lengths) >= _ENOUGH_LENGTHS:
            break
    if lengths:
        return {"lengths": lengths, "prompt_tokens": max(1, round(prompts / len(lengths)))}
    return {  # learner.record = false
        "mean": result["tokens"] / result["samples"],
        "prompt_tokens": max(1, round((result["processed_tokens"] - result["tokens"]) / result["samples"])),
    }


def _rate(result: Mapping[str, Any], role: str, tokens: float) -> dict[str, Any]:
    """Tokens for a second of its mathematics, and what its processes do beside it. Start-up and checkpoints are apart."""
    stages = result.get("cpu_stages", {}).get(role, {})
    maths = sum(stages.get(stage, 0.0) for stage in _MATHS[role])
    if not maths or not tokens:
        return {}
    process = result["cpu_s"].get(role, 0.0) - sum(stages.get(stage, 0.0) for stage in _APART)
    return {"tokens_per_s": tokens / maths, "beside": max(0.0, process / maths - 1)}


def _evaluated(result: Mapping[str, Any]) -> float:
    """Answer tokens of the evaluations, whose CPU is the producers' too: taken to be as long as the others."""
    answers = sum(one["n"] for one in result.get("evaluations", ()))
    return float(answers * result["tokens"] / result["samples"])


def _server_s(result: Mapping[str, Any]) -> float:
    return float(result["cpu_s"].get("server", 0.0) / result["samples"])


def _publication(directory: RunDirectory) -> dict[str, Any]:
    """From a step's end to its weights at a producer, by the roles' own logs, where they are kept."""
    done = {(line["term"], line["step"]): line["at"] for line in read_metrics(directory.metrics)}
    latencies = [at - done[version] for file in _logs(directory.root) for version, at in _first_tokens(file) if version in done]
    if not latencies:
        return {}
    each = max(0.0, statistics.median(latencies)) / 2
    return {"put_s": each, "fetch_s": each}


def _logs(root: Path) -> Iterator[Path]:
    return root.glob("logs/producer-*.log")


def _first_tokens(log: Path) -> Iterator[tuple[tuple[int, int], float]]:
    text = log.read_text(errors="replace")
    for term, step, at in _FIRST_TOKEN.findall(text):
        yield (int(term), int(step)), float(at)
    for at, term, step in _ON_SERVER.findall(text):
        yield (int(term), int(step)), datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
