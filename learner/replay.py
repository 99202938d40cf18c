"""Trains again what the journal holds, and compares every step with the figures on record, bit for bit.

Guarantees: writes nothing; follows the surviving line; begins at the student where the journal reaches back so far, else at the oldest
checkpoint from which the records follow without a gap. A step that no line of metrics.jsonl tells of (a crash came between its record and
its line) is trained and not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from common.config import RunConfig
from common.errors import ConfigError
from common.messages import StepRecord, Version
from common.pulse import Pulse
from learner.batch import samples_of, scored_of
from learner.checkpoint import Checkpoint
from learner.directory import RunDirectory
from learner.maths import Trainer
from learner.metrics import metric_lines
from learner.schedule import learning_rate
from learner.surviving import surviving_checkpoints, surviving_records


@dataclass(frozen=True, slots=True)
class Figures:
    """What a step came to."""

    loss: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step trained again; `recorded` is None where nothing is on record."""

    version: Version
    samples: int
    recorded: Figures | None
    again: Figures

    @property
    def differs(self) -> bool:
        """Whether any bit does."""
        return self.recorded is not None and self.recorded != self.again


def replay(config: RunConfig, build: Callable[[RunConfig, Pulse], Trainer]) -> Iterator[Replayed]:
    """Step after step. Raises ConfigError where nothing can be trained again."""
    directory = RunDirectory(config.directory)
    begin, base = _begin(directory)
    recorded = _recorded(directory)
    trainer = build(config, Pulse("replay"))
    try:
        if base is not None:
            trainer.load(base.model)
        for record in surviving_records(directory, begin):
            yield _again(config, trainer, record, recorded)
    finally:
        trainer.close()


def _again(config: RunConfig, trainer: Trainer, record: StepRecord, recorded: Mapping[Version, Figures]) -> Replayed:
    samples, _ = samples_of(record, scored_of(record), config.learner.max_staleness)
    stats = trainer.step(record, samples, learning_rate(config.optimizer, record.step, config.learner.steps))
    version = Version(record.term, record.step)
    return Replayed(version, stats.samples, recorded.get(version), Figures(stats.loss, stats.grad_norm))


def _begin(directory: RunDirectory) -> tuple[int, Checkpoint | None]:
    """The step after which to begin, and the checkpoint of it."""
    kept = list(surviving_checkpoints(directory))
    newest = kept[-1].line.step if kept else 0
    for base in [None, *kept]:
        begin = 0 if base is None else base.line.step
        if _reaches(directory, begin, newest):
            return begin, base
    raise ConfigError(
        f"no step of {directory.root} can be trained again: the journal holds none after a kept checkpoint; set learner.record = true"
    )


def _reaches(directory: RunDirectory, begin: int, newest: int) -> bool:
    """Whether records follow `begin` without a gap up to the newest checkpoint, one at least."""
    reached = begin
    for record in surviving_records(directory, begin):
        if record.step != reached + 1:
            return False
        reached = record.step
        if reached >= newest:
            break
    return reached > begin and reached >= newest


def _recorded(directory: RunDirectory) -> dict[Version, Figures]:
    lines = metric_lines(directory.metrics)
    return {Version(line["term"], line["step"]): Figures(line["loss"], line["grad_norm"]) for line in lines}
