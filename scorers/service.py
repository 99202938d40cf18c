"""A scorer: lease rollouts by token budget → score with one teacher → hand off to the next topic of the slip.

Consumes `rollouts:<teacher>`; waits for rollouts and for its teacher; produces `rollouts:<next teacher>` or `scored`. While one batch is
scored the next is leased and decoded and the one before is handed off. An entry that another worker had before is quarantined: nothing else
is scored while it is, in a small group, then alone, and what keeps failing alone goes to the dead letters. A teacher that turned bad gets
nothing more: its rollouts go back for other scorers, and it is asked again until it is itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from common.bus.base import SCORED, Burial, Bus, Lease, Move, rollouts
from common.codec import decode, encode
from common.errors import BusFull, OtherSchema, Rejected, WireError
from common.hop import hop, now_ms
from common.leases import quarantine_size
from common.loading import loading
from common.messages import Hop, ScoredRollout, TeacherScore
from common.patience import until_mended
from common.service import Worker
from scorers.teachers.base import Teacher

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A leased sample."""

    lease: Lease
    sample: ScoredRollout

    @property
    def tokens(self) -> int:
        """Prompt and response."""
        return len(self.sample.rollout.ticket.prompt_ids) + len(self.sample.rollout.completion.response_ids)


Result = tuple[Job, TeacherScore | Rejected, Hop]


class Scorer:
    """Feeds one teacher."""

    _linger_s: ClassVar[float] = 0.02  # how long it waits for company when there is less than half a forward pass
    _repair_s: ClassVar[float] = 5.0  # between two examinations of a teacher that turned bad
    _examine_s: ClassVar[float] = 60.0  # between two of one that seems well
    _busy_s: ClassVar[float] = 0.25  # between two looks for more while the teacher is busy: its end comes as an event, so nothing is late

    def __init__(self, *, worker: Worker, teacher: Teacher, name: str, examine: Callable[[], Awaitable[str]]) -> None:
        self._worker = worker
        self._teacher = teacher
        self._name = name
        self._examine = examine
        self._examined_at = time.monotonic()
        self._complaint = ""
        self._topic = rollouts(name)
        self._budget = worker.config.scorer.lease_tokens
        self._enough = min(self._budget, worker.config.scorer.batch_tokens // 2)
        self._tokens_each = float(worker.config.sampling.max_new_tokens)  # running estimate
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Serves until told to stop, then finishes what its teacher has begun and gives the rest back at once."""
        await self._is_fit()
        async with asyncio.TaskGroup() as tasks:
            ahead = tasks.create_task(self._fetch(), name="lease")
            behind = tasks.create_task(self._hand_off([]), name="hand-off")
            while jobs := await self._waited("rollouts", ahead):
                suspects = [job for job in jobs if job.lease.deliveries > 1]
                if suspects:
                    await behind
                    await self._quarantine(suspects, [job for job in jobs if job.lease.deliveries <= 1])
                    ahead = tasks.create_task(self._fetch(), name="lease")
                    continue
                ahead = tasks.create_task(self._fetch(), name="lease")
                results = await self._score(jobs)
                await self._waited("bus", behind)
                behind = tasks.create_task(self._hand_off(results), name="hand-off")

    async def _waited(self, cause: str, task: asyncio.Task[T]) -> T:
        if task.done():
            return task.result()
        with self._worker.pulse.waiting(cause):
            return await task

    async def _fetch(self) -> list[Job]:
        """Leases and decodes up to the budget, ready when the teacher is. Empty: told to stop; what was leased goes back."""
        worker, jobs, lingered = self._worker, list[Job](), False
        while not worker.stopping.is_set():
            if self._complaint:
                await self._give_back(jobs)
                jobs = []
                await self._until_repaired()
                continue
            room = self._budget - sum(job.tokens for job in jobs)
            count = max(1, int(room / self._tokens_each))
            leases = await worker.bus.lease((self._topic,), count, 0.0 if jobs else worker.config.service.heartbeat_s)
            worker.keeper.hold(leases)
            jobs += await self._decode(leases)
            if self._is_ready(jobs, lingered):
                break
            if jobs:
                lingered = self._idle.is_set()
                await self._pause()
        while not (self._idle.is_set() or worker.stopping.is_set()):
            await self._pause()
        if worker.stopping.is_set():
            await self._give_back(jobs)
            return []
        return jobs

    def _is_ready(self, jobs: Sequence[Job], lingered: bool) -> bool:
        tokens = sum(job.tokens for job in jobs)
        full = tokens + self._tokens_each > self._budget
        return bool(jobs) and (
            full or any(job.lease.deliveries > 1 for job in jobs) or (self._idle.is_set() and (lingered or tokens >= self._enough))
        )

    async def _pause(self) -> None:
        """A moment for more to arrive; shorter when the teacher falls idle."""
        if self._idle.is_set():
            await asyncio.sleep(self._linger_s)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self._busy_s)

    async def _decode(self, leases: Sequence[Lease]) -> list[Job]:
        """Jobs for this teacher; what is no such job goes to the dead letters."""
        jobs, burials = [], []
        with self._worker.pulse.cpu("codec"):
            for lease in leases:
                try:
                    jobs.append(Job(lease, self._sample_of(lease)))
                except OtherSchema:
                    raise
                except (WireError, Rejected) as error:
                    burials.append(Burial(lease, str(error)))
        await self._bury(burials)
        if jobs:
            self._tokens_each += 0.5 * (sum(job.tokens for job in jobs) / len(jobs) - self._tokens_each)
        return jobs

    def _sample_of(self, lease: Lease) -> ScoredRollout:
        sample = decode(lease.payload, ScoredRollout)
        assert isinstance(sample, ScoredRollout)
        asked = sample.remaining[0].teacher if sample.remaining else "none"
        if asked != self._name:
            raise Rejected(f"it came to teacher {self._name}, but the next teacher of its slip is {asked}")
        return sample

    async def _score(self, jobs: Sequence[Job]) -> list[Result]:
        held = [job for job in jobs if self._worker.keeper.holds(job.lease)]
        if not held or self._complaint:
            await self._give_back(held)
            return []
        self._idle.clear()
        began = now_ms()
        try:
            with self._worker.pulse.waiting("teacher"), self._worker.keeper.computing([job.lease for job in held]):
                results = await self._teacher.score([job.sample.rollout for job in held])
                told = [hop(self._worker.name, job.lease, began) for job in held]
                doubtful = any(isinstance(result, Rejected) for result in results)
                due = time.monotonic() > self._examined_at + self._examine_s
                fit = await self._is_fit() if doubtful or due else True
        finally:
            self._idle.set()
        if not fit:
            await self._give_back(held)
            return []
        return list(zip(held, results, told, strict=True))

    async def _is_fit(self) -> bool:
        before, self._complaint = self._complaint, await self._examine()
        self._examined_at = time.monotonic()
        self._worker.pulse.set(complaint=self._complaint, **{f"unhealthy:{self._name}": int(bool(self._complaint))})
        if self._complaint and not before:
            log.error("has stopped scoring", extra={"teacher": self._name, "reason": self._complaint})
        return not self._complaint

    async def _give_back(self, jobs: Sequence[Job]) -> None:
        """Innocent: another scorer may have them at once."""
        leases = [job.lease for job in jobs]
        self._worker.keeper.drop(leases)
        await self._worker.bus.release(leases)

    async def _until_repaired(self) -> None:
        """The teacher is itself again, or it is time to look anew whether to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._worker.stopping.wait(), self._repair_s)
        if not self._worker.stopping.is_set():
            await self._is_fit()

    async def _hand_off(self, results: Sequence[Result]) -> None:
        worker = self._worker
        burials = [Burial(job.lease, result.reason) for job, result, _ in results if isinstance(result, Rejected)]
        scored = [(job, result, told) for job, result, told in results if isinstance(result, TeacherScore)]
        await self._bury(burials)
        if not scored:
            return
        with worker.pulse.cpu("codec"):
            moves = [_move(*each) for each in scored]
        with worker.keeper.leaving([move.lease for move in moves]):
            outcomes = await until_mended(worker.pulse, "server memory", lambda: worker.bus.hand_off(moves), BusFull)
        worker.pulse.add(
            batches=1,
            samples=len(scored),
            tokens=sum(job.tokens for job, _, _ in scored),
            clamped=sum(score.clamped for _, score, _ in scored),
            refused=outcomes.count("refused"),
        )

    async def _quarantine(self, suspects: Sequence[Job], fresh: Sequence[Job]) -> None:
        """Scores `fresh`, then suspects apart from everything else, the oftener delivered the smaller the group."""
        await self._hand_off(await self._score(fresh))
        left = sorted(suspects, key=lambda job: job.lease.deliveries)
        most = max(1, int(self._budget / self._tokens_each))
        while left:
            size = quarantine_size(left[-1].lease.deliveries, most)
            left, group = left[:-size], left[-size:]
            if size == 1 and await self._is_poison(group[0].lease):
                continue
            await self._hand_off(await self._score(group))

    async def _is_poison(self, lease: Lease) -> bool:
        tries = await self._worker.bus.begin_alone(lease)
        if tries < self._worker.config.learner.max_attempts:
            return False
        await self._bury([Burial(lease, f"poison: {tries} scorers failed on it alone")])
        return True

    async def _bury(self, burials: Sequence[Burial]) -> None:
        if burials:
            log.warning("cannot score", extra={"seqs": [burial.lease.seq for burial in burials], "reason": burials[0].reason})
            with self._worker.keeper.leaving([burial.lease for burial in burials]):
                outcomes = await self._worker.bus.bury(burials)
            self._worker.pulse.add(rejected=outcomes.count("done"), refused=outcomes.count("refused"))


def _move(job: Job, score: TeacherScore, told: Hop) -> Move:
    before = job.sample
    sample = ScoredRollout(before.rollout, (*before.scores, score), (*before.hops, told))
    topic = rollouts(sample.remaining[0].teacher) if sample.remaining else SCORED
    return Move(job.lease, topic, encode(sample))


async def score(worker: Worker, name: str) -> None:
    """The body of a scorer's process: teacher `name`."""
    worker.pulse.set(teacher=name)
    worker.pulse.state(f"loads teacher {name}")
    with loading():
        from scorers.probe import open_checked

        teacher, examination = await open_checked(worker.config, name, worker.pulse)

    async def complaint() -> str:
        return await _other_weights(worker.bus, name, teacher.digest) or await examination.complaint()

    worker.pulse.state("scores")
    log.info("is ready", extra={"teacher": name})
    try:
        await Scorer(worker=worker, teacher=teacher, name=name, examine=complaint).run()
    finally:
        await teacher.aclose()


async def _other_weights(bus: Bus, name: str, digest: str) -> str:
    """A complaint where the run was begun with other weights under this teacher's name; said again, it is known also to a server that
    came back empty."""
    first = await bus.vouch(name, digest)
    if first == digest:
        return ""
    return (
        f"teacher {name} has other weights ({digest}) than those that this run was begun with ({first}): "
        f"restore them in teachers.{name}.path and start this scorer anew, or begin anew with --fresh"
    )
