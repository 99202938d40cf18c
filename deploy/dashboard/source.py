"""What a dashboard shows: a run with its directory, or what a server alone tells of one.

Guarantee: a page that says what it has read so far is given what it lacks, and nothing twice.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol  # Any: JSON values

from common.bus.base import Bus
from common.config import RunConfig
from deploy.dashboard.live import Live
from deploy.dashboard.shelved import Shelved
from deploy.dashboard.waiting import Waiting
from deploy.report.record import Record, run_facts
from deploy.visit import connected
from learner.directory import RunDirectory


class Source(Protocol):
    """What the pages' server asks."""

    def facts(self) -> dict[str, Any]:
        """What does not change."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Follows the run while inside."""

    def document(self, epoch: str, revision: int, edition: int) -> dict[str, Any]:
        """What a page lacks that has read so far."""

    async def rollout(self, step: int, seq: int) -> dict[str, Any] | None:
        """Token by token; None where there is none such."""


class RunSource:
    """A run's directory, and its bus while that is there."""

    def __init__(self, config: RunConfig, *, period_s: float) -> None:
        directory = RunDirectory(config.directory)
        self._config = config
        self._record = Record(directory)
        self._shelved = Shelved(config, directory)
        self._live = Live(lambda: connected(config, "observer"), period_s=period_s)
        self._period = period_s

    def facts(self) -> dict[str, Any]:
        """See Source.facts."""
        return run_facts(self._config) | {"recorded": True}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """See Source.opened."""
        self._record.refresh()
        async with asyncio.TaskGroup() as tasks:
            bodies = {"live": self._live.run, "record": self._read, "rollouts": self._shelved.run}
            following = [tasks.create_task(body(), name=name) for name, body in bodies.items()]
            yield
            for task in following:
                task.cancel()

    async def _read(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            self._record.refresh()

    def document(self, epoch: str, revision: int, edition: int) -> dict[str, Any]:
        """See Source.document."""
        now = self._live.document
        dead = self._live.dead if now and self._live.dead else self._shelved.dead
        known = revision if epoch == self._record.epoch else 0
        return self._record.document(known) | self._shelved.document(edition) | {"now": now, "away": self._live.away, "dead": dead}

    async def rollout(self, step: int, seq: int) -> dict[str, Any] | None:
        """See Source.rollout."""
        return await self._shelved.rollout(step, seq)


class BusSource:
    """A run of which only the server is at hand: what its heartbeats say, and the answers seen waiting for the learner, from now on."""

    def __init__(
        self, run: str, reach: Callable[[], AbstractAsyncContextManager[Bus]], *, period_s: float, config: RunConfig | None = None
    ) -> None:
        self._run = run
        self._waiting = Waiting(config)
        self._live = Live(reach, period_s=period_s, also=self._waiting.look)
        self._period = period_s
        self._epoch = uuid.uuid4().hex
        self._rows: dict[int, dict[str, Any]] = {}
        self._accuracy: dict[int, float] = {}

    def facts(self) -> dict[str, Any]:
        """See Source.facts."""
        return {"run": self._run, "recorded": False}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """See Source.opened."""
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(self._live.run(), name="live"), tasks.create_task(self._remember(), name="record")]
            yield
            for task in following:
                task.cancel()

    async def _remember(self) -> None:
        """The learner's words, one row per look with a new step."""
        while True:
            await asyncio.sleep(self._period)
            said: dict[str, Any] = (self._live.document or {}).get("learner", {})
            if isinstance(step := said.get("step"), int) and "kl" in said:
                self._rows[step] = {key: said[key] for key in ("step", "kl", "loss") if key in said}
            if isinstance(step := said.get("accuracy_step"), int) and "accuracy" in said:
                self._accuracy[step] = said["accuracy"]

    def document(self, epoch: str, revision: int, edition: int) -> dict[str, Any]:
        """See Source.document."""
        known = revision if epoch == self._epoch else -1
        return {
            "epoch": self._epoch,
            "revision": max(self._rows, default=-1),
            "steps": [row for step, row in sorted(self._rows.items()) if step > known],
            "evaluations": [{"step": step, "pass_at_1": share} for step, share in sorted(self._accuracy.items())],
            "now": self._live.document,
            "away": self._live.away,
            "dead": self._live.dead,
        } | self._waiting.document(edition)

    async def rollout(self, step: int, seq: int) -> dict[str, Any] | None:
        """See Source.rollout."""
        return self._waiting.rollout(step, seq)
