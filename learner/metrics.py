"""metrics.jsonl is the record of a run: one line per step; TensorBoard's files are made from it.

A resumed run writes steps again that a lost line had: the last line of a step counts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.messages import StepRecord
from common.pulse import Pulse
from learner.batch import Consumed
from learner.directory import RunDirectory
from learner.disk import end_torn_line, needs_room
from learner.evaluation import Evaluation
from learner.training import StepStats

_GAUGES = (
    *("step", "loss", "grad_norm", "lr", "kl", "behaviour_kl", "mixed_share", "truncated_share", "entropy_gap"),
    *("student_top_mass", "teacher_top_mass", "sampled_in_top_k", "top_k_overlap"),
)
_log = logging.getLogger(__name__)


class Metrics:
    """Appends to metrics.jsonl and keeps the heartbeat's gauges."""

    def __init__(self, *, directory: RunDirectory, pulse: Pulse) -> None:
        end_torn_line(directory.metrics)
        self._path = directory.metrics
        self._pulse = pulse

    def step(self, record: StepRecord, stats: StepStats, consumed: Consumed, *, wall_s: float) -> None:
        """One line."""
        samples = max(1, stats.samples)
        line: dict[str, Any] = {
            "step": stats.step,
            "term": record.term,
            "at": round(time.time(), 3),
            "loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "lr": stats.lr,
            "samples": stats.samples,
            "tokens": stats.tokens,
            "response_tokens": consumed.tokens,
            "processed": stats.processed,
            "micro_batches": stats.micro_batches,
            "seconds": round(stats.seconds, 4),
            "wall_s": round(wall_s, 4),
            "staleness": {str(lag): count for lag, count in sorted(consumed.staleness.items())},
            "masked_tokens": consumed.masked,
            "ghost_tokens": consumed.ghosts,
            "mixed_share": consumed.mixed / samples,
            "truncated_share": consumed.truncated / samples,
            "kl_by_teacher": dict(stats.kl_by_teacher),
            "kl_by_position": dict(stats.kl_by_position),
            **consumed.agreement,
            **stats.metrics,
        }
        self._append(line)
        self._beat(line, stats, consumed)
        _log.info("step", extra={key: line[key] for key in ("step", "loss", "grad_norm", "tokens", "wall_s")})

    def _beat(self, line: dict[str, Any], stats: StepStats, consumed: Consumed) -> None:
        gauges: dict[str, float] = {name: line[name] for name in _GAUGES if name in line}
        gauges |= {f"teacher_kl:{teacher}": kl for teacher, kl in stats.kl_by_teacher.items()}
        gauges |= {f"position_kl:{start}": kl for start, kl in stats.kl_by_position.items()}
        trained = max(1, sum(consumed.staleness.values()))
        gauges["staleness_mean"] = sum(lag * count for lag, count in consumed.staleness.items()) / trained
        gauges["staleness_max"] = max(consumed.staleness, default=0)
        self._pulse.set(**gauges)
        self._pulse.add(
            samples=stats.samples,
            tokens=stats.processed,
            trained_tokens=stats.tokens,
            masked_tokens=consumed.masked,
            ghost_tokens=consumed.ghosts,
            steps=1,
        )

    def evaluation(self, result: Evaluation) -> None:
        """One line of its own."""
        line = {"step": result.step, "term": result.term, "at": round(time.time(), 3), "pass_at_1": result.pass_at_1, "n": result.n}
        self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        """A line that finds no room is lost, not the run."""
        text = (json.dumps(line) + "\n").encode()
        with self._path.open("ab", buffering=0) as file:
            begin = file.tell()
            try:
                written = file.write(text)
            except OSError as error:
                _log.warning("a line of metrics is lost", extra={"reason": error.strerror})
                return
            if written != len(text):
                file.truncate(begin)


def metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The step lines as they were written, also those of lines that were lost; what a crash cut off is left out."""
    return (line for line in _lines(path) if "loss" in line)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The step lines in order of step, the last line of each."""
    steps: dict[int, dict[str, Any]] = {line["step"]: line for line in metric_lines(path)}
    return [steps[step] for step in sorted(steps)]


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The evaluations that asked anything, in order."""
    return [line for line in _lines(path) if line["n"]]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(text)
        except ValueError:  # a line that a crash cut off
            continue


def write_tensorboard(directory: RunDirectory) -> None:
    """Makes TensorBoard's files from metrics.jsonl and evaluations.jsonl."""
    from torch.utils.tensorboard import SummaryWriter

    for old in directory.tensorboard.glob("events.*"):
        old.unlink()
    with needs_room(directory.root, "event files"), SummaryWriter(str(directory.tensorboard)) as writer:
        for line in read_metrics(directory.metrics):
            numbers = {name: value for name, value in line.items() if isinstance(value, int | float) and name not in {"step", "at"}}
            for name, value in numbers.items():
                writer.add_scalar(name, value, line["step"], walltime=line["at"])
        for line in read_evaluations(directory.evaluations):
            writer.add_scalar("pass_at_1", line["pass_at_1"], line["step"], walltime=line["at"])
