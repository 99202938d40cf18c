"""What a run keeps on disk beside the journal: checkpoints as they fall due, and the best version by evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.codec import decode, encode
from common.config import RunConfig
from common.messages import Version, WeightManifest
from common.pulse import Pulse
from learner import checkpoint, journal
from learner.directory import RunDirectory
from learner.disk import write_durably
from learner.evaluation import Evaluation, Evaluator
from learner.maths import Trainer
from learner.tally import Tally


class Keeping:
    """Writes and deletes in the run's directory; `save` is called in the maths thread."""

    def __init__(self, *, config: RunConfig, directory: RunDirectory, pulse: Pulse) -> None:
        self._config = config
        self._directory = directory
        self._pulse = pulse
        self._counted_until = time.monotonic()

    def save(self, line: Mapping[str, Any], tally: Mapping[str, Any], trainer: Trainer) -> None:
        """A checkpoint of this step, then what it makes superfluous goes. `tally` is a copy: the event loop goes on counting."""
        with self._pulse.cpu("checkpoint"):
            checkpoint.save(self._directory.checkpoints, line, tally, trainer.save)
            self._tidy(line["term"])

    def begin(self, line: Mapping[str, Any], tally: Mapping[str, Any], trainer: Trainer) -> Callable[[], None]:
        """The same of the trainer as it is now; the call returned sees it through, in another thread."""
        with self._pulse.cpu("checkpoint"):
            written = checkpoint.begin(self._directory.checkpoints, line, tally, trainer.begin_save)
        return partial(self._see_through, written, line["term"])

    def _see_through(self, written: Callable[[], Path], term: int) -> None:
        with self._pulse.cpu("checkpoint"):
            written()
            self._tidy(term)

    def _tidy(self, term: int) -> None:
        checkpoint.delete_old(self._directory.checkpoints, self._config.learner.keep_checkpoints, term)
        oldest = checkpoint.oldest(self._directory.checkpoints)
        if not self._config.learner.record and oldest is not None:
            journal.trim(self._directory.journal, oldest, term)

    def count_time(self, tally: Tally) -> None:
        """The wall time since the last call belongs to the run."""
        now = time.monotonic()
        tally.wall_s += now - self._counted_until
        self._counted_until = now

    def pin(self, result: Evaluation, manifest: WeightManifest, evaluator: Evaluator) -> frozenset[Version]:
        """The versions that must stay in the store: the best, where it is asked for."""
        if not self._config.evaluation.keep_best:
            return frozenset()
        if evaluator.best == result:
            write_durably(self._directory.best, encode(manifest))
        best = self.best()
        return frozenset() if best is None else frozenset({best.version})

    def best(self) -> WeightManifest | None:
        """The version with the best evaluation, where it is asked for."""
        if not self._config.evaluation.keep_best or not self._directory.best.exists():
            return None
        manifest = decode(self._directory.best.read_bytes(), WeightManifest)
        assert isinstance(manifest, WeightManifest)
        return manifest
