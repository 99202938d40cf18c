"""Where a new term begins: the highest valid checkpoint and the records of that checkpoint's term after it.

Guarantees (P2): needs neither Redis nor producers nor teachers; records of any other term are ignored, so that whatever a zombie still
writes has no part in this line; the new term's own checkpoint is durable before the term journals, settles or publishes anything.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from common.config import RunConfig
from learner import checkpoint, journal
from learner.batch import samples_of, scored_of
from learner.directory import RunDirectory
from learner.line import Line
from learner.maths import Trainer
from learner.schedule import learning_rate
from learner.tally import Tally

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumed:
    """A trainer's line and tally, and what replaying the journal took."""

    line: Line
    tally: Tally
    replayed: int
    replay_s: float


def resume(config: RunConfig, directory: RunDirectory, trainer: Trainer, term: int) -> Resumed:
    """Brings the trainer to the end of the surviving line. Runs in the maths thread; so does `save_first`, which must follow."""
    line, tally = _load(directory, trainer, term)
    loaded = time.monotonic()
    replayed = _replay(config, directory, trainer, line, tally)
    replay_s = time.monotonic() - loaded
    line.begin(term)
    tally.replayed_steps += replayed
    tally.replay_s += replay_s
    return Resumed(line, tally, replayed, replay_s)


def save_first(directory: RunDirectory, resumed: Resumed, trainer: Trainer) -> None:
    """The term's own checkpoint, of the trainer that `resume` left; DiskFull leaves nothing of it, and it can be tried again."""
    line = resumed.line
    checkpoint.save(directory.checkpoints, line.to_json(), resumed.tally.to_json(), trainer.save)
    times = {"replayed": resumed.replayed, "replay_s": round(resumed.replay_s, 3)}
    _log.info("resumed", extra={"term": line.term, "step": line.step, **times})


def _load(directory: RunDirectory, trainer: Trainer, term: int) -> tuple[Line, Tally]:
    checkpoint.put_back(directory.checkpoints)
    found = checkpoint.newest(directory.checkpoints)
    if found is None:
        return Line(), Tally()
    checkpoint.set_aside(directory.checkpoints, found.version, term)
    trainer.load(found.model)
    return found.line, Tally.from_json(found.extra)


def _replay(config: RunConfig, directory: RunDirectory, trainer: Trainer, line: Line, tally: Tally) -> int:
    first = line.step
    for record in journal.records(directory.journal, line.term, after=line.step):
        samples, consumed = samples_of(record, scored_of(record), config.learner.max_staleness)
        stats = trainer.step(record, samples, learning_rate(config.optimizer, record.step, config.learner.steps))
        line.apply(record)
        tally.add(stats, consumed)
    return line.step - first
