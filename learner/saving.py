"""When a run's checkpoints are taken, and which of them training waits for.

Guarantees: at most one is being written, and the next one waits for it; what is written is the state and the line of the step at which it
was begun; a failure to write ends the run as it would without a background, and a full disk makes the run wait.
Consumes the line after every step; waits for the disk; unblocks the deletion of older checkpoints and of journal segments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

from common.config import RunConfig
from common.errors import DiskFull
from common.patience import until_mended
from common.pulse import Pulse
from learner.journal import Journal
from learner.keeping import Keeping
from learner.maths import MathsThread, Trainer
from learner.publish import Background
from learner.tally import Tally

_GOODBYE_S = 10.0

T = TypeVar("T")


class Saving:
    """Takes the checkpoints of one term."""

    def __init__(
        self,
        *,
        config: RunConfig,
        pulse: Pulse,
        trainer: Trainer,
        maths: MathsThread,
        journal: Journal,
        tally: Tally,
        keeping: Keeping,
        changed: asyncio.Event,
    ) -> None:
        self._config = config
        self._pulse = pulse
        self._trainer = trainer
        self._maths = maths
        self._journal = journal
        self._tally = tally
        self._keeping = keeping
        self._write = Background(changed)

    async def after_step(self, line: Mapping[str, Any]) -> None:
        """A checkpoint where one is due."""
        await self.heed(line)
        if line["step"] % self._config.learner.checkpoint_every == 0:
            await (self._begin(line) if self._config.learner.checkpoint_async else self.save(line))

    async def save(self, line: Mapping[str, Any]) -> None:
        """Durable when it returns, however long the disk is full."""
        with suppress(DiskFull):  # this one is newer
            await self._written()
        await self._take(self._keeping.save, line)

    async def heed(self, line: Mapping[str, Any]) -> None:
        """Raises what a write failed with. One that found no room is given up: the run waits until there is room for one of this step."""
        try:
            self._write.check()
        except DiskFull:
            await self.save(line)

    async def close(self) -> None:
        """After a failure: what is being written may still become a checkpoint; what becomes of it is not asked."""
        with suppress(Exception):
            await asyncio.wait_for(self._write.wait(), _GOODBYE_S)
        await self._write.close()

    async def _begin(self, line: Mapping[str, Any]) -> None:
        """Copied when it returns; written in a thread."""
        try:
            await self._written()
        except DiskFull:
            return await self.save(line)
        written = await self._take(self._keeping.begin, line)
        self._write.start(partial(asyncio.to_thread, written), "checkpoint")
        return None

    async def _written(self) -> None:
        with self._pulse.waiting("checkpoint") if self._write.busy else nullcontext():
            await self._write.wait()

    async def _take(self, take: Callable[[Mapping[str, Any], Mapping[str, Any], Trainer], T], line: Mapping[str, Any]) -> T:
        self._keeping.count_time(self._tally)
        tally = self._tally.to_json()
        taken = await until_mended(self._pulse, "disk", lambda: self._maths.run(take, line, tally, self._trainer), DiskFull)
        if not self._config.learner.record:
            self._journal.rotate()
        return taken
