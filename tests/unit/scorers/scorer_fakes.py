"""A server and a teacher in memory: what a scorer sees of them, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from tiny_models import make_rollout

from common.bus.base import Burial, Lease, Move, Outcome
from common.codec import decode, encode
from common.config import RunConfig, parse_config
from common.errors import Rejected
from common.leases import LeaseKeeper
from common.messages import Rollout, ScoredRollout, TeacherScore
from common.pulse import Pulse
from common.service import Worker
from scorers.service import Scorer


@dataclass
class Entry:
    seq: int
    payload: bytes
    owner: str = ""
    deliveries: int = 0


@dataclass
class Server:
    topics: dict[str, dict[str, Entry]] = field(default_factory=dict)
    dead: dict[int, str] = field(default_factory=dict)
    alone: dict[int, int] = field(default_factory=dict)
    vouched: dict[str, str] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0

    def add(self, topic: str, seq: int, payload: bytes, deliveries: int = 0) -> None:
        self.count += 1
        self.topics.setdefault(topic, {})[f"{self.count}-0"] = Entry(seq, payload, "", deliveries)
        self.arrived.set()

    def take_from(self, owner: str) -> None:
        """All leases of `owner` run out."""
        for entries in self.topics.values():
            for entry in entries.values():
                entry.owner = "" if entry.owner == owner else entry.owner
        self.arrived.set()

    def payloads(self, topic: str) -> list[bytes]:
        return [entry.payload for entry in self.topics.get(topic, {}).values()]

    async def until(self, topic: str, count: int) -> None:
        while len(self.topics.get(topic, {})) + len(self.dead) < count:
            self.arrived.clear()
            await self.arrived.wait()


class FakeBus:
    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name

    async def lease(self, topics: Sequence[str], count: int, wait_s: float) -> list[Lease]:
        leases = self._take(topics, count)
        if not leases and wait_s:
            self._server.arrived.clear()
            try:
                await asyncio.wait_for(self._server.arrived.wait(), wait_s)
            except TimeoutError:
                return []
            leases = self._take(topics, count)
        return leases

    def _take(self, topics: Sequence[str], count: int) -> list[Lease]:
        leases = []
        for topic in topics:
            for place, entry in self._server.topics.get(topic, {}).items():
                if not entry.owner and len(leases) < count:
                    entry.owner = self._name
                    entry.deliveries += 1
                    leases.append(Lease(topic, place, entry.seq, 0, entry.payload, entry.deliveries))
        return leases

    def _finish(self, lease: Lease) -> bool:
        entry = self._server.topics[lease.topic].get(lease.entry)
        if entry is None or entry.owner != self._name:
            return False
        del self._server.topics[lease.topic][lease.entry]
        return True

    async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        places = self._server.topics
        return [x for x in leases if x.entry in places[x.topic] and places[x.topic][x.entry].owner == self._name]

    async def hand_off(self, moves: Sequence[Move]) -> list[Outcome]:
        await asyncio.sleep(0)
        outcomes: list[Outcome] = []
        for move in moves:
            done = self._finish(move.lease)
            outcomes.append("done" if done else "refused")
            if done:
                self._server.add(move.topic, move.lease.seq, move.payload)
        return outcomes

    async def bury(self, burials: Sequence[Burial]) -> list[Outcome]:
        for burial in burials:
            assert self._finish(burial.lease)
            self._server.dead[burial.lease.seq] = burial.reason
        self._server.arrived.set()
        return ["done"] * len(burials)

    async def release(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._server.topics[lease.topic][lease.entry].owner = ""
            self._server.topics[lease.topic][lease.entry].deliveries -= 1
        self._server.arrived.set()

    async def vouch(self, teacher: str, digest: str) -> str:
        return self._server.vouched.setdefault(teacher, digest)

    async def begin_alone(self, lease: Lease) -> int:
        before = self._server.alone.get(lease.seq, 0)
        self._server.alone[lease.seq] = before + 1
        return before


class FakeTeacher:
    """Says −seq for every token; `batches` are the seqs it was given. Held, it scores as many batches as `go` says."""

    digest = "fake"

    def __init__(self, name: str, rejects: Iterable[int] = (), dies_of: Iterable[int] = ()) -> None:
        self.batches: list[list[int]] = []
        self._permits: asyncio.Semaphore | None = None
        self.began = asyncio.Event()
        self._name = name
        self._rejects = set(rejects)
        self._dies_of = set(dies_of)
        self.broken = ""

    def hold(self) -> None:
        self._permits = asyncio.Semaphore(0)

    def go(self, batches: int = 100) -> None:
        for _ in range(batches):
            self._permits.release()

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScore | Rejected]:
        self.batches.append([rollout.ticket.seq for rollout in rollouts])
        self.began.set()
        if self._permits is not None:
            await self._permits.acquire()
        if self._dies_of & set(self.batches[-1]):
            raise MemoryError("teacher died")
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> TeacherScore | Rejected:
        seq = rollout.ticket.seq
        if self.broken or seq in self._rejects:
            return Rejected(f"NaN in {seq}")
        return TeacherScore(self._name, self.digest, np.full(len(rollout.completion.response_ids), -seq, np.float32))

    async def complaint(self) -> str:
        return self.broken

    async def part_complaint(self) -> str:
        return ""

    async def aclose(self) -> None:
        pass


def config_of(teachers: Sequence[str] = ("t",), **scorer: int) -> RunConfig:
    return parse_config(
        {
            "run": {"name": "r"},
            "model": {"student": "student"},
            "teachers": {name: {"path": name} for name in teachers},
            "data": {"prompts": "p.jsonl"},
            "sampling": {"max_new_tokens": 16},
            "evaluation": {"prompts": 0},
            "service": {"heartbeat_s": 0.05},
            "scorer": scorer,
        }
    )


def worker_of(server: Server, config: RunConfig, name: str = "me") -> Worker:
    bus = FakeBus(server, name)
    keeper = LeaseKeeper(bus, lease_s=30, work_deadline_s=60)
    return Worker(role="scorer", name=name, config=config, bus=bus, pulse=Pulse(), keeper=keeper, stopping=asyncio.Event())


@asynccontextmanager
async def serving(worker: Worker, teacher: FakeTeacher, name: str = "t") -> AsyncIterator[asyncio.Task[None]]:
    """Runs a scorer inside the block and stops it, as SIGTERM does, behind it; the task is its life."""
    task = asyncio.create_task(Scorer(worker=worker, teacher=teacher, name=name, examine=teacher.complaint).run())
    try:
        yield task
    finally:
        worker.stopping.set()
        await asyncio.wait_for(task, 60)


def filled(count: int, teachers: tuple[str, ...] = ("t",), deliveries: int = 0, first: int = 0) -> Server:
    server = Server()
    fill(server, count, teachers, deliveries, first)
    return server


def fill(server: Server, count: int, teachers: tuple[str, ...] = ("t",), deliveries: int = 0, first: int = 0) -> None:
    for seq in range(first, first + count):
        sample = ScoredRollout(make_rollout([1, 2], [3, 4, 5], seq, teachers))
        server.add(f"rollouts:{teachers[0]}", seq, encode(sample), deliveries)


def scored(server: Server, topic: str = "scored") -> dict[int, ScoredRollout]:
    samples = [decode(payload, ScoredRollout) for payload in server.payloads(topic)]
    assert len({sample.rollout.ticket.seq for sample in samples}) == len(samples)
    return {sample.rollout.ticket.seq: sample for sample in samples}
