"""A producer on the memory bus: what it leases, when it starts it, and where the outcome goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.bus.base import EVAL, EVALUATED, SCORED, TICKETS, rollouts
from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer
from common.codec import decode, encode
from common.config import parse_config
from common.errors import Rejected, WeightsError
from common.leases import LeaseKeeper
from common.messages import (
    Completion,
    Evaluated,
    Rollout,
    Sampling,
    ScoredRollout,
    Span,
    TeacherShare,
    Ticket,
    Version,
    WeightManifest,
)
from common.pulse import Pulse
from common.service import Worker
from producers.follower import WeightsFollower
from producers.service import Producer

FIRST = Version(1, 0)


class FakeEngine:
    """Answers at once unless `gate` is closed; remembers what it sampled together."""

    def __init__(self, slots: int) -> None:
        self.version = Version(0, 0)
        self.slots = slots
        self.running: list[int] = []
        self.groups: list[list[int]] = []
        self.started: list[str] = []
        self.refuses: set[int] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def wanted(self) -> int:
        return self.slots - len(self.running)

    async def generate(self, ticket: Ticket) -> Completion:
        self.running.append(ticket.seq)
        self.started.append("question" if ticket.metadata else "sample")
        try:
            await asyncio.sleep(0.01)
            self.groups.append(sorted(self.running))
            await self.gate.wait()
            if ticket.seq in self.refuses:
                raise Rejected("the prompt is longer than the context")
        finally:
            self.running.remove(ticket.seq)
        span = Span(*self.version, 2, True)
        return Completion(np.array([1, 2], np.int32), np.array([-0.1, -0.2], np.float32), (span,), "stop")

    async def update_weights(self, manifest: WeightManifest, directory: Path) -> None:
        self.version = manifest.version

    async def aclose(self) -> None:
        pass


class FakeStore:
    """Every version is there but those in `damaged`."""

    def __init__(self) -> None:
        self.damaged: set[Version] = set()

    async def fetch(self, manifest: WeightManifest) -> Path:
        if manifest.version in self.damaged:
            raise WeightsError("a digest differs")
        return Path()


class FakeJudge:
    async def judge(self, finished: Sequence[Rollout]) -> list[Evaluated]:
        return [
            Evaluated(r.ticket.metadata["evaluation"], r.ticket.seq, FIRST, True, r.completion.response_ids, r.completion.finish_reason)
            for r in finished
        ]


class Stage:
    """One producer with its bus, engine and store; the learner's side of the bus is `learner`."""

    def __init__(self, slots: int = 8, server: MemoryServer | None = None, name: str = "producer-1") -> None:
        self.server = server or MemoryServer()
        self.learner = MemoryBus(self.server, name="learner-1")
        self.engine = FakeEngine(slots)
        self.store = FakeStore()
        values: dict[str, Any] = {
            "run": {"name": "t"},
            "model": {"student": "s"},
            "teachers": {"t": {"path": "p"}},
            "data": {"prompts": "x"},
            "evaluation": {"prompts": 0},
            "producer": {"slots": slots},
            "service": {"heartbeat_s": 0.05},
        }
        config = parse_config(values)
        bus = MemoryBus(self.server, name=name)
        keeper = LeaseKeeper(bus, lease_s=30, work_deadline_s=60)
        self.worker = Worker(
            role="producer", name=name, config=config, bus=bus, pulse=Pulse("producer"), keeper=keeper, stopping=asyncio.Event()
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        worker, engine, store = self.worker, self.engine, self.store
        follower = WeightsFollower(bus=worker.bus, store=store, engine=engine, pulse=worker.pulse, poll_s=0.05)  # type: ignore[arg-type]
        producer = Producer(worker=worker, engine=engine, follower=follower, judge=FakeJudge())  # type: ignore[arg-type]
        task = asyncio.create_task(producer.run())
        try:
            async with asyncio.timeout(60):
                yield task
                worker.stopping.set()
                await task
        finally:
            task.cancel()

    async def admit(self, count: int, min_version: Version = FIRST) -> None:
        await self.learner.admit(1, 0, [(seq, encode(ticket(seq, min_version))) for seq in range(count)])

    async def publish(self, version: Version) -> None:
        await self.learner.publish(version.term, encode(WeightManifest(version, "full", "d", (), {})), 8)

    async def backlog(self, topic: str) -> int:
        return (await self.learner.state()).backlog.get(topic, 0)

    async def until(self, topic: str, count: int) -> None:
        while await self.backlog(topic) < count:
            await asyncio.sleep(0.01)


def ticket(seq: int, min_version: Version = FIRST) -> Ticket:
    sampling = Sampling(1.0, 4, (0,))
    return Ticket(seq, 0, f"p{seq}", np.array([3, 4], np.int32), sampling, (TeacherShare("t", 1.0),), min_version, {})


async def test_every_ticket_becomes_a_rollout_for_its_first_teacher() -> None:
    stage = Stage()
    await stage.publish(FIRST)
    async with stage.running():
        await stage.admit(20)
        await stage.until(rollouts("t"), 20)
    leases = await MemoryBus(stage.server, name="scorer-1").lease([rollouts("t")], 100, 0)
    scored = [decode(lease.payload, ScoredRollout) for lease in leases]
    assert sorted(one.rollout.ticket.seq for one in scored) == list(range(20))
    assert all([hop.worker for hop in one.hops] == ["producer-1"] and one.hops[0].began <= one.hops[0].done for one in scored)
    assert await stage.backlog(TICKETS) == 0
    assert (await stage.learner.state()).live == 20


async def test_a_ticket_waits_for_the_weights_it_asks_for() -> None:
    stage = Stage()
    await stage.publish(FIRST)
    async with stage.running():
        await stage.admit(2, Version(1, 3))
        while stage.worker.pulse.report().state != "waits for weights":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await stage.backlog(rollouts("t")) == 0
        await stage.publish(Version(1, 3))
        await stage.until(rollouts("t"), 2)


async def test_a_damaged_version_is_passed_over_for_the_one_before() -> None:
    stage = Stage()
    stage.store.damaged = {Version(1, 2)}
    for step in (0, 1, 2):
        await stage.publish(Version(1, step))
    async with stage.running():
        while stage.engine.version < Version(1, 1):
            await asyncio.sleep(0.01)
    assert stage.engine.version == Version(1, 1)
    assert stage.worker.pulse.report().counters["weights_refused"] == 1


async def test_evaluations_go_first_and_leave_the_ledger_alone() -> None:
    stage = Stage(slots=4)
    await stage.publish(FIRST)
    await stage.admit(8)
    question = ticket(0)._replace(slip=(), metadata={"evaluation": "e", "answer": "1"})
    await stage.learner.ask(1, EVAL, [(index, encode(question._replace(seq=index))) for index in range(4)])
    async with stage.running():
        await stage.until(EVALUATED, 4)
        await stage.until(rollouts("t"), 8)
    assert stage.engine.started == ["question"] * 4 + ["sample"] * 8
    assert (await stage.learner.state()).live == 8


async def test_what_cannot_be_sampled_goes_to_the_dead_letters_with_its_reason() -> None:
    stage = Stage()
    stage.engine.refuses = {1}
    await stage.publish(FIRST)
    async with stage.running():
        await stage.admit(3)
        await stage.until(rollouts("t"), 2)
        while not await stage.learner.dead_letters():
            await asyncio.sleep(0.01)
    letters = await stage.learner.dead_letters()
    assert letters[1].reason == "the prompt is longer than the context"


async def test_stopping_gives_back_tickets_whose_weights_never_came() -> None:
    stage = Stage()
    async with stage.running():
        await stage.admit(3, Version(9, 9))
        while len(stage.worker.keeper) < 3:
            await asyncio.sleep(0.01)
    await stage.worker.keeper.release_all()
    again = await MemoryBus(stage.server, name="producer-2").lease([TICKETS], 10, 0)
    assert [lease.seq for lease in again] == [0, 1, 2]
    assert all(lease.deliveries == 1 for lease in again)


async def test_stopping_finishes_what_is_being_sampled() -> None:
    stage = Stage()
    stage.engine.gate.clear()
    await stage.publish(FIRST)
    async with stage.running():
        await stage.admit(3)
        while len(stage.engine.running) < 3:
            await asyncio.sleep(0.01)
        stage.worker.stopping.set()
        stage.engine.gate.set()
    assert await stage.backlog(rollouts("t")) == 3


@pytest.mark.parametrize(("deliveries", "largest"), [(2, 2), (3, 1)])
async def test_suspects_are_sampled_apart_in_small_groups(deliveries: int, largest: int) -> None:
    stage = Stage(slots=16)
    await stage.publish(FIRST)
    await stage.admit(6)
    await _die_holding(stage, range(1, deliveries))
    async with stage.running():
        await stage.until(rollouts("t"), 6)
    assert max(len(group) for group in stage.engine.groups) == largest


async def test_what_keeps_failing_alone_is_poison() -> None:
    stage = Stage(slots=16)
    await stage.publish(FIRST)
    await stage.admit(1)
    await _die_holding(stage, range(1, 5), alone=True)
    async with stage.running():
        while not await stage.learner.dead_letters():
            await asyncio.sleep(0.01)
    assert "poison" in (await stage.learner.dead_letters())[0].reason
    assert await stage.backlog(SCORED) == 0


async def _die_holding(stage: Stage, deaths: range, *, alone: bool = False) -> None:
    """Producers lease everything and are never heard of again; their leases run out."""
    for number in deaths:
        bus = MemoryBus(stage.server, name=f"dead-{number}", lease_s=0.0)
        for lease in await bus.lease([TICKETS], 100, 0):
            if alone:
                await bus.begin_alone(lease)
    stage.worker.bus._lease_s = 0.0


async def test_a_version_that_cannot_be_read_for_a_moment_is_tried_again() -> None:
    stage = Stage()
    stage.store.damaged = {FIRST}
    await stage.publish(FIRST)
    await stage.admit(2)
    async with stage.running():
        while not stage.worker.pulse.report().counters.get("weights_refused"):
            await asyncio.sleep(0.01)
        stage.store.damaged.clear()
        await stage.until(rollouts("t"), 2)
    assert stage.worker.pulse.report().counters["weights_refused"] == 1
