"""The learner's process on rank 0: claim a term, resume, train, finish; or drain on a signal and let a later life go on.

Guarantees: nothing of the line is read or written before its term is claimed; the term's lease is renewed beside everything else, and
a learner that was superseded stops without another write; a finished run is recognised by its result.json.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psutil

from common.config import RunConfig
from common.errors import ConfigError, DiskFull, RefluxError, StoreAway, Superseded
from common.loading import loading
from common.messages import WeightManifest
from common.patience import until_mended
from common.pulse import Pulse, Report
from common.service import Worker
from common.weights import open_store
from common.weights.base import WeightStore
from learner.directory import RunDirectory
from learner.disk import once_there_is_room, write_durably
from learner.evaluation import Evaluator
from learner.export import export_model, read_tensors
from learner.feeder import EvaluationSource, PromptSource, Window
from learner.journal import Journal
from learner.keeping import Keeping
from learner.ledger import Ledger
from learner.loop import Loop
from learner.maths import MathsThread, Trainer
from learner.metrics import Metrics, write_tensorboard
from learner.publish import Publisher
from learner.result import result_of
from learner.resume import Resumed, resume, save_first
from learner.terms import claim_term
from learner.wandb_run import check_wandb, write_wandb

T = TypeVar("T")

_CENSUS_S = 2.0
_GOODBYE_S = 10.0
_log = logging.getLogger(__name__)

BuildTrainer = Callable[[RunConfig, Pulse], Trainer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a learner is built from beside the worker; tests bring their own."""

    prompts: PromptSource
    questions: EvaluationSource
    store: WeightStore
    build: BuildTrainer


def real_material(config: RunConfig) -> Material:
    """The run's prompts, weight store and Megatron."""
    with loading():
        from learner.losses import check_loss
        from learner.prompts import load_eval_prompts, load_prompts
        from learner.ranks import build_trainer

    check_loss(config)
    if config.weights.url.startswith(("http://", "https://")):
        raise ConfigError("weights.url = http(s)://… is for producers: give the learner weights.dir, or a place it can write to")
    return Material(prompts=load_prompts(config), questions=load_eval_prompts(config), store=open_store(config), build=build_trainer)


async def learn(
    worker: Worker,
    *,
    take_over: bool = False,
    material: Callable[[RunConfig], Material] = real_material,
    beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
) -> None:
    """The learner's body. `beside`: watches whose failure is the run's failure."""
    config, directory = worker.config, RunDirectory(worker.config.directory)
    check_wandb(config)
    parts = await asyncio.to_thread(material, config)
    fingerprints = {"data.prompts": parts.prompts.fingerprint, "data.eval_prompts": parts.questions.fingerprint}
    await once_there_is_room(worker.pulse, partial(directory.open, config, fingerprints))
    term = await _claim(worker, parts.store, directory, take_over=take_over)
    await once_there_is_room(worker.pulse, partial(directory.keep, config))
    worker.pulse.set(term=term, **{f"teacher_differs:{name}": int(not teacher.allow_inert) for name, teacher in config.teachers.items()})
    try:
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(_hold(worker, term), name="term lease")]
            background += [tasks.create_task(watch(), name="watch") for watch in beside]
            async with _trainer(parts.build, worker) as (trainer, maths):
                await _live(worker, parts, directory, term, trainer, maths)
            for task in background:
                task.cancel()
    finally:
        with suppress(RefluxError, TimeoutError):  # a successor need not wait for the lease to end
            async with asyncio.timeout(_GOODBYE_S):
                await worker.bus.resign(term, worker.name)


async def _claim(worker: Worker, store: WeightStore, directory: RunDirectory, *, take_over: bool) -> int:
    """A run that has begun waits for its weight store; one that begins is told what is wrong with it."""
    how = partial(claim_term, worker.bus, store, directory, owner=worker.name, lease_s=worker.config.bus.lease_s, take_over=take_over)
    away = (StoreAway,) if any(directory.terms.iterdir()) else ()
    there = partial(until_mended, worker.pulse, "weight store", how, *away)
    return await until_mended(worker.pulse, "disk", there, DiskFull)


@asynccontextmanager
async def _trainer(build: BuildTrainer, worker: Worker) -> AsyncIterator[tuple[Trainer, MathsThread]]:
    """The model in its thread; it leaves its process group also after a failure, unless that takes too long."""
    maths = MathsThread()
    try:
        trainer = await maths.run(build, worker.config, worker.pulse)
        try:
            yield trainer, maths
        finally:
            with suppress(TimeoutError, RuntimeError):
                await asyncio.wait_for(maths.run(trainer.close), _GOODBYE_S)
    finally:
        maths.close()


async def _hold(worker: Worker, term: int) -> None:
    """Renews the learner's own lease; ends only by Superseded or cancellation."""
    while True:
        await asyncio.sleep(worker.config.bus.lease_s / 3)
        await worker.bus.hold(term, worker.name, worker.config.bus.lease_s)


async def _live(worker: Worker, parts: Material, directory: RunDirectory, term: int, trainer: Trainer, maths: MathsThread) -> None:
    resumed = await maths.run(resume, worker.config, directory, trainer, term)
    await until_mended(worker.pulse, "disk", lambda: maths.run(save_first, directory, resumed, trainer), DiskFull)
    counted = sum(worker.pulse.report().cpu.values())
    worker.pulse.spend("startup", max(0.0, time.process_time() - counted))  # imports and building run in many threads
    worker.pulse.set(replayed_steps=resumed.replayed, replay_s=round(resumed.replay_s, 3), step=resumed.line.step)
    life = _Life(worker, parts, directory, trainer, maths, resumed)
    try:
        await life.train()
    finally:
        await life.close()


class _Life:
    """Builds what a term works with, and sees it through."""

    def __init__(
        self, worker: Worker, parts: Material, directory: RunDirectory, trainer: Trainer, maths: MathsThread, resumed: Resumed
    ) -> None:
        config = worker.config
        self._worker, self._parts, self._directory = worker, parts, directory
        self._trainer, self._maths = trainer, maths
        self._tally, self._line = resumed.tally, resumed.line
        self._keeping = Keeping(config=config, directory=directory, pulse=worker.pulse)
        self._publisher = Publisher(bus=worker.bus, store=parts.store, pulse=worker.pulse, keep=config.weights.keep)
        self._evaluator = Evaluator(
            bus=worker.bus,
            pulse=worker.pulse,
            directory=directory,
            questions=parts.questions,
            section=config.evaluation,
            steps=config.learner.steps,
            term=resumed.line.term,
        )
        self.journal = Journal(directory.journal, resumed.line.term, pulse=worker.pulse)
        self.metrics = Metrics(directory=directory, pulse=worker.pulse)
        self._ledger = self._new_ledger()
        self._loop = Loop(
            config=config,
            pulse=worker.pulse,
            stopping=worker.stopping,
            trainer=trainer,
            maths=maths,
            ledger=self._ledger,
            journal=self.journal,
            tally=resumed.tally,
            publisher=self._publisher,
            evaluator=self._evaluator,
            metrics=self.metrics,
            keeping=self._keeping,
        )

    def _new_ledger(self) -> Ledger:
        config, learner = self._worker.config, self._worker.config.learner
        return Ledger(
            bus=self._worker.bus,
            keeper=self._worker.keeper,
            pulse=self._worker.pulse,
            line=self._line,
            journal=self.journal,
            prompts=self._parts.prompts,
            publisher=self._publisher,
            section=learner,
            window=Window(learner.batch_size, learner.max_staleness, learner.steps, config.bus.max_bytes, config.largest_sample_bytes),
            keep_manifests=config.weights.keep,
        )

    async def train(self) -> None:
        """All of the term; the result is written where the run is done."""
        async with asyncio.TaskGroup() as tasks:
            watches = (self._ledger.intake, self._ledger.watch, self._census, self._wake_on_stop)
            background = [tasks.create_task(watch(), name=watch.__name__) for watch in watches]
            try:
                await self._loop.begin(await self._interrupted())
                await self._loop.train()
                await self._loop.finish()
            finally:
                await self._loop.abandon()
            await self._loop.checkpoint()
            if not self._worker.stopping.is_set():
                await self._finish()
            for task in background:
                task.cancel()

    async def close(self) -> None:
        """Also after a failure."""
        await self._loop.close()
        self.journal.close()

    async def _interrupted(self) -> WeightManifest | None:
        """The version whose evaluation the last term left open, if the store still has it."""
        manifest = self._evaluator.load(self._line.step)
        return manifest if manifest is not None and manifest.version in await self._from_store(self._parts.store.versions) else None

    async def _from_store(self, call: Callable[[], Awaitable[T]]) -> T:
        return await until_mended(self._worker.pulse, "weight store", call, StoreAway)

    async def _finish(self) -> None:
        """model/, event files, and last result.json: with it the run is done. A learner that was superseded writes none of them."""
        config, best, bus = self._worker.config, self._keeping.best(), self._worker.bus
        await bus.hold(self._line.term, self._worker.name, config.bus.lease_s)
        if best is None:
            tensors = await self._maths.run(self._trainer.export)
        else:
            tensors = await asyncio.to_thread(read_tensors, await self._from_store(partial(self._parts.store.fetch, best)))
        export = partial(export_model, config.model.student, tensors, config.weights.dtype, self._directory.model)
        with self._worker.pulse.cpu("checkpoint"):
            await once_there_is_room(self._worker.pulse, export)
        await once_there_is_room(self._worker.pulse, partial(write_tensorboard, self._directory))
        await asyncio.to_thread(write_wandb, config, self._directory)
        await self._count()
        state = await bus.state()
        if state.term > self._line.term:
            raise Superseded(f"a learner of a higher term ({state.term}) has taken over this run: this one stops")
        result = result_of(
            config=config,
            directory=self._directory,
            line=self._line,
            tally=self._tally,
            evaluator=self._evaluator,
            state=state,
        )
        write = partial(write_durably, self._directory.result, json.dumps(result, indent=1) + "\n")
        await once_there_is_room(self._worker.pulse, write)
        _log.info("the run is done", extra={"result": str(self._directory.result)})

    async def _wake_on_stop(self) -> None:
        await self._worker.stopping.wait()
        self._loop.wake()
        await asyncio.Event().wait()

    async def _census(self) -> None:
        """Keeps the CPU seconds of every worker seen: those that die take their reports with them."""
        while True:
            await self._count()
            await asyncio.sleep(_CENSUS_S)

    async def _count(self) -> None:
        reports = [Report.decode(raw) for raw in (await self._worker.bus.reports()).values()]
        for report in [*reports, self._worker.pulse.report()]:
            worker = f"{report.role}/{report.name}"
            self._tally.cpu_s[worker] = report.process_s
            self._tally.stages[worker] = {stage: round(seconds, 4) for stage, seconds in report.cpu.items()}
        for rank in psutil.Process().children() if self._worker.config.learner.ranks > 1 else ():
            with suppress(psutil.NoSuchProcess):
                times = rank.cpu_times()
                self._tally.cpu_s[f"learner/{self._worker.name}-{rank.pid}"] = times.user + times.system
        self._keeping.count_time(self._tally)
