"""Training as its own summary: wait for a durable batch, step, publish, evaluate, checkpoint.

Guarantees: the next batch is leased, formed, journaled and settled while this one computes, never more than one ahead; at S = 0 the
publication precedes the next step, at S ≥ 1 it overlaps it; while an evaluation is open nothing newer is published, so training goes on
until the window is used up; a signal ends it at a step's boundary with a checkpoint. Whoever is waited for has a name in the heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from common.config import RunConfig
from common.errors import DiskFull
from common.messages import Version, WeightManifest
from common.patience import until_mended
from common.pulse import Pulse
from learner.batch import samples_of
from learner.evaluation import Evaluator
from learner.journal import Journal
from learner.keeping import Keeping
from learner.ledger import Ledger, Prepared
from learner.maths import MathsThread, Trainer
from learner.metrics import Metrics
from learner.publish import Background, Publisher, end
from learner.saving import Saving
from learner.schedule import learning_rate
from learner.tally import Tally

_LOOK_S = 1.0
_log = logging.getLogger(__name__)


class Loop:
    """One term's training. `step` is the number of steps the trainer has done."""

    def __init__(
        self,
        *,
        config: RunConfig,
        pulse: Pulse,
        stopping: asyncio.Event,
        trainer: Trainer,
        maths: MathsThread,
        ledger: Ledger,
        journal: Journal,
        tally: Tally,
        publisher: Publisher,
        evaluator: Evaluator,
        metrics: Metrics,
        keeping: Keeping,
    ) -> None:
        self._config = config
        self._pulse = pulse
        self._stopping = stopping
        self._trainer = trainer
        self._maths = maths
        self._ledger = ledger
        self._publisher = publisher
        self._evaluator = evaluator
        self._metrics = metrics
        self._keeping = keeping
        self.tally = tally
        self._wake = asyncio.Event()
        self._preparing: asyncio.Task[Prepared] | None = None
        self._saving = Saving(
            config=config,
            pulse=pulse,
            trainer=trainer,
            maths=maths,
            journal=journal,
            tally=tally,
            keeping=keeping,
            changed=self._wake,
        )
        self._publication = Background(self._wake)
        self._evaluation = Background(self._wake)
        self._line: Mapping[str, Any] = ledger.line.to_json()  # as of `step`
        self._last_step_at = time.monotonic()

    @property
    def step(self) -> int:
        """Steps that the trainer has done."""
        step: int = self._line["step"]
        return step

    @property
    def _version(self) -> Version:
        return Version(self._line["term"], self.step)

    @property
    def _stopped(self) -> bool:
        return self._stopping.is_set()

    # ---- the life of a term ------------------------------------------------------------------------------------------------
    async def begin(self, interrupted: WeightManifest | None) -> None:
        """Reconcile, finish the evaluation that the last term left open, publish."""
        best = self._keeping.best()
        self._publisher.pinned = frozenset() if best is None else frozenset({best.version})
        self._ledger.expect(self._version)
        await self._ledger.reconcile()
        if interrupted is not None:
            await self._publisher.announce(self._version.term, interrupted)
            self._evaluate(interrupted)
            await self._quiet()
        if not self._stopped:
            await self._publish()
            await self._publication.wait()

    async def train(self) -> None:
        """Until all steps are done or a signal comes."""
        self._prepare(self.step + 1)
        while (prepared := await self._prepared()) is not None:
            self._prepare(prepared.record.step + 1)
            await self._take(prepared)

    async def finish(self) -> None:
        """Final publication and reconcile, final evaluation."""
        await self._quiet()
        if not self._stopped and self._publisher.published != self._version:
            await self._publish()
        await self._quiet()
        if not self._stopped:
            await self._ledger.reconcile()

    async def abandon(self) -> None:
        """Ends what runs beside the loop."""
        if self._preparing is not None:
            await end(self._preparing)
        await self._publication.close()
        await self._evaluation.close()

    async def checkpoint(self) -> None:
        """The trainer as it is, with the line of its step; durable when it returns."""
        await self._saving.save(self._line)

    async def close(self) -> None:
        """Waits for no checkpoint any more."""
        await self._saving.close()

    # ---- one step ------------------------------------------------------------------------------------------------------------
    def _prepare(self, step: int) -> None:
        self._preparing = None
        if step <= self._config.learner.steps:
            self._preparing = asyncio.create_task(self._ledger.prepare(), name="prepare")
            self._preparing.add_done_callback(lambda _: self._wake.set())

    async def _prepared(self) -> Prepared | None:
        """The prepared batch; None at the end or after a signal. Publishes what is owed while it waits."""
        preparing = self._preparing
        while preparing is not None and not preparing.done():
            if self._stopped:
                return None
            self._check()
            await self._saving.heed(self._line)
            if self._owed():
                await self._publish()
            if not preparing.done():
                await self._look(self._cause())
        return None if preparing is None else preparing.result()

    async def _take(self, prepared: Prepared) -> None:
        record = prepared.record
        lr = learning_rate(self._config.optimizer, record.step, self._config.learner.steps)
        with self._pulse.cpu("packing"):
            samples, consumed = samples_of(record, prepared.scored, self._config.learner.max_staleness)
        self._pulse.state("trains")
        stats = await self._maths.run(self._trainer.step, record, samples, lr)
        self._line = prepared.line
        self.tally.add(stats, consumed)
        now = time.monotonic()
        self._metrics.step(record, stats, consumed, wall_s=now - self._last_step_at)
        self._last_step_at = now
        self._check()
        await self._after_step()

    async def _after_step(self) -> None:
        due = self._evaluator.due(self.step)
        if due:
            await self._quiet()
        if not self._stopped and (due or self._owed()):
            await self._publish()
        if self._config.learner.max_staleness == 0 and not self._publisher.gated:
            with self._pulse.waiting("publication"):
                await self._publication.wait()
        await self._saving.after_step(self._line)

    # ---- publication and evaluation ------------------------------------------------------------------------------------------
    def _owed(self) -> bool:
        """Whether the newest weights should be on the log and may be."""
        if self._publication.busy or self._publisher.gated or self._publisher.published is None:
            return False
        learner = self._config.learner
        every = min(self._config.weights.publish_every, learner.max_staleness + 1)
        return self.step - self._publisher.published.step >= (1 if self.step == learner.steps else every)

    async def _publish(self) -> None:
        """Exports now; store, log and admission follow in the background."""
        version = self._version
        tensors = await self._maths.run(self._trainer.export)
        self._ledger.expect(version)

        async def out() -> None:
            manifest = await self._publisher.publish(version, tensors)
            self.tally.versions += 1
            if self._evaluator.due(version.step):
                self._evaluate(manifest)
            await self._ledger.top_up()

        self._publication.start(out, "publication")

    def _evaluate(self, manifest: WeightManifest) -> None:
        self._publisher.gated = True
        self._publisher.pinned |= {manifest.version}

        async def ask() -> None:
            result = await self._evaluator.run(manifest)
            self._metrics.evaluation(result)
            pin = partial(asyncio.to_thread, self._keeping.pin, result, manifest, self._evaluator)
            self._publisher.pinned = await until_mended(self._pulse, "disk", pin, DiskFull)
            self._publisher.gated = False

        self._evaluation.start(ask, "evaluation")

    async def _quiet(self) -> None:
        """Until publication and evaluation are over, or a signal comes."""
        while (self._publication.busy or self._evaluation.busy) and not self._stopped:
            self._check()
            await self._look(self._publishing)
        self._check()

    # ---- waiting ---------------------------------------------------------------------------------------------------------------
    def _check(self) -> None:
        if self._preparing is not None and self._preparing.done():
            self._preparing.result()
        self._publication.check()
        self._evaluation.check()

    def wake(self) -> None:
        """Something happened: whoever waits looks again."""
        self._wake.set()

    async def _look(self, cause: str) -> None:
        """Sleeps until something happens, at most a second, so that the cause stays true."""
        with self._pulse.waiting(cause):
            try:
                await asyncio.wait_for(self._wake.wait(), _LOOK_S)
            except TimeoutError:
                return
        self._wake.clear()

    def _cause(self) -> str:
        """What a missing batch is owed to: nothing in flight means that the learner itself admits nothing."""
        if self._ledger.blocked:
            return "admission"
        if self._ledger.in_flight < self._config.learner.batch_size and (self._publication.busy or self._publisher.gated):
            return self._publishing
        return "scored"

    @property
    def _publishing(self) -> str:
        return "evaluation" if self._publisher.gated else "publication"
