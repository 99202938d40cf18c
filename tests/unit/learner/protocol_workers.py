"""The run's processes: learners that are the product's own code, producers and scorers that do what the test asks of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
from learner_fakes import FakePrompts, FakeQuestions, FakeTrainer, rollout_of
from protocol_process import RUNNING, Process

from common.bus.base import SCORED, TICKETS, Burial, Move, Retry, Revival
from common.codec import decode, encode
from common.leases import LeaseKeeper
from common.messages import ScoredRollout, Span, TeacherScore, Ticket, Version, WeightManifest
from common.pulse import Pulse
from common.service import Worker
from learner.service import Material, learn

if TYPE_CHECKING:
    from protocol_world import World

ROLLOUTS = "rollouts:t"


class Store:
    """Versions by name; the same version never has other contents."""

    def __init__(self) -> None:
        self.kept: dict[Version, bytes] = {}

    async def _reach(self, what: str) -> None:
        process = RUNNING.get()
        assert process is not None
        await process.gate(what)

    async def put(self, version, tensors):
        await self._reach("put")
        content = bytes(tensors["weight"].buffer)
        assert self.kept.setdefault(version, content) == content, f"version {version} was published with other weights"
        return WeightManifest(version, "full", str(version), (), {})

    async def versions(self):
        await self._reach("versions")
        return sorted(self.kept)

    async def gc(self, keep, up_to_term, pinned):
        """Everything stays, to be compared with."""


class Life(Process):
    """A learner's process."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world.loop, f"learner-{number}")
        self.trainer = FakeTrainer()
        self.bus = world.medium.bus(self)
        keeper = LeaseKeeper(self.bus, lease_s=30.0, work_deadline_s=1e9)
        worker = Worker(
            role="learner", name=self.name, config=world.config, bus=self.bus, pulse=Pulse("learner", self.name), keeper=keeper,
            stopping=asyncio.Event(),
        )  # fmt: skip
        material = Material(prompts=FakePrompts(), questions=FakeQuestions(), store=world.store, build=lambda *_: self.trainer)
        self.begin(learn(worker, take_over=True, material=lambda _: material))
        self.begin(keeper.run())

    @property
    def over(self) -> bool:
        return not self.alive or self.tasks[0].done()

    @property
    def finished(self) -> bool:
        task = self.tasks[0]
        return self.alive and task.done() and not task.cancelled() and task.exception() is None


class Hand(Process):
    """A producer or a scorer, with what it holds."""

    def __init__(self, world: World, kind: str, number: int) -> None:
        super().__init__(world.loop, f"{kind}-{number}")
        self.kind, self.bus, self.held = kind, world.medium.bus(self), []
        self.topic, self.version = (TICKETS if kind == "producer" else ROLLOUTS), Version(0, 0)

    async def take(self, most: int) -> None:
        leases = await self.bus.lease([self.topic], most, 0)
        self.held = [held for held in self.held if held.entry not in {lease.entry for lease in leases}] + leases

    async def follow(self) -> None:
        log = await self.bus.weights_after("0", 0)
        self.version = max([self.version, *(decode(payload, WeightManifest).version for _, payload in log)])

    async def hand_off(self) -> None:
        """What it may; tickets for newer weights stay."""
        moves = [move for lease in self.held if (move := self._move(lease))]
        self.held = [lease for lease in self.held if lease not in [move.lease for move in moves]]
        if moves:
            await self.bus.hand_off(moves)

    def _move(self, lease) -> Move | None:
        if self.kind == "producer":
            ticket = decode(lease.payload, Ticket)
            spans = [Span(*self.version, 3, True)]
            return Move(lease, ROLLOUTS, encode(ScoredRollout(rollout_of(ticket, spans)))) if self.version >= ticket.min_version else None
        rollout = decode(lease.payload, ScoredRollout).rollout
        score = TeacherScore("t", "d", np.full(len(rollout.completion.response_ids), -0.4, np.float32))
        return Move(lease, SCORED, encode(ScoredRollout(rollout, (score,))))

    def ticket(self, lease) -> bytes:
        """The same sample once more."""
        ticket = decode(lease.payload, Ticket) if self.kind == "producer" else decode(lease.payload, ScoredRollout).rollout.ticket
        return encode(FakePrompts().ticket(ticket.seq, lease.attempt + 1, ticket.min_version))

    async def sample_again(self) -> None:
        held, self.held = self.held, []
        if held:
            await self.bus.retry([Retry(lease, self.ticket(lease), "stale") for lease in held], 3)

    async def bury(self) -> None:
        held, self.held = self.held[:1], self.held[1:]
        if held:
            await self.bus.bury([Burial(lease, "poison") for lease in held])

    async def revive(self) -> None:
        """What `reflux dead retry` does, for all that are dead."""
        letters = (await self.bus.dead_letters()).values()
        if letters:
            tickets = [FakePrompts().ticket(letter.seq, letter.attempt + 1, Version(0, 0)) for letter in letters]
            await self.bus.revive([Revival(ticket.seq, ticket.attempt, encode(ticket)) for ticket in tickets])

    async def release(self) -> None:
        held, self.held = self.held, []
        if held:
            await self.bus.release(held)
