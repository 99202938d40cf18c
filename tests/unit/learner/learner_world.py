"""A whole run around a real learner: a real server, workers that sample and score out of thin air, and crashes at named calls.

A life is one learner process: after its crash nothing more of it reaches the bus. The truth of a run is the list of samples that the last
trainer was trained on.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager, nullcontext

import numpy as np
import pytest
from learner_fakes import FakePrompts, FakeQuestions, FakeTrainer, background, rollout_of

from common.bus import connect_url
from common.bus.base import EVAL, EVALUATED, SCORED, TICKETS, Move
from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer
from common.codec import decode, encode
from common.config import parse_config
from common.leases import LeaseKeeper
from common.messages import Evaluated, ScoredRollout, Span, TeacherScore, Ticket, Version, WeightManifest
from common.pulse import Pulse
from common.service import Worker
from common.weights.directory import DirectoryStore
from deploy.checker import Look, audit, look_at
from deploy.checker.server import Letter, Place
from learner.directory import RunDirectory
from learner.service import Material, learn

LEASE_S = 0.6


class Crash(Exception):
    """The process is gone."""


class Crashing:
    """Calls through to `inner`; the n-th call of `method` is the last, before or after it took effect."""

    def __init__(self, inner, plan=None):
        self._inner, self._plan, self._calls, self.dead = inner, plan, Counter(), False

    def __getattr__(self, name):
        method = getattr(self._inner, name)

        async def call(*arguments, **named):
            if self.dead:
                raise Crash(f"dead before {name}")
            self._calls[name] += 1
            mine = self._plan is not None and self._plan[0] == name and self._calls[name] == self._plan[2]
            if mine and self._plan[1] == "before":
                self.dead = True
                raise Crash(f"before {name}")
            result = await method(*arguments, **named)
            if mine:
                self.dead = True
                raise Crash(f"after {name}")
            return result

        return call


class World:
    """One run, its directory and its server."""

    def __init__(self, tmp_path, *, url="", name="run", questions=0, evaluation=None, weights=None, run=None, loss=None, **learner):
        student = tmp_path / "student"
        student.mkdir(exist_ok=True)
        (student / "config.json").write_text('{"model_type": "fake"}')
        values = {
            "run": {"name": name, "dir": str(tmp_path / "runs"), **(run or {})},
            "model": {"student": str(student)},
            "teachers": {"t": {"path": "t", "top_k": 0}},
            "data": {"prompts": "p", "eval_prompts": "e"},
            "loss": {"kind": "sampled_reverse_kl", **(loss or {})},
            "learner": {"batch_size": 3, "steps": 8, "max_staleness": 1, "checkpoint_every": 3, **learner},
            "evaluation": {"prompts": questions, "deadline_s": 60.0, **(evaluation or {})},
            "weights": {"keep": 3, **(weights or {})},
            "bus": {"lease_s": LEASE_S},
        }
        self.config = parse_config(values)
        self.directory = RunDirectory(self.config.directory)
        self.url, self.name, self.server = url, name, MemoryServer()
        self.store = DirectoryStore(self.config.weight_directory, full_every=self.config.weights.full_every)
        self.questions = FakeQuestions(questions)
        self.trainer = self.worker = None
        self.lives = 0
        self.version = None  # what the producer samples with
        self.sampling = asyncio.Event()
        self.sampling.set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.evaluated_while = []
        self.lags = Counter()

    def connect(self, name):
        """The twin in memory, or the server at `url`."""
        if not self.url:
            return nullcontext(MemoryBus(self.server, name=name, lease_s=LEASE_S))
        return connect_url(self.url, run=self.name, name=name, lease_s=LEASE_S, outage_timeout_s=5.0)

    @asynccontextmanager
    async def workers(self):
        async with self.connect("producer-0") as producer, self.connect("scorer-0") as scorer:
            work = background(self._follow(producer), self._produce(producer), self._score(scorer))
            async with work:
                yield

    async def _follow(self, bus):
        """Follows the weights log."""
        while True:
            log = await bus.weights_after("0", 0)
            if log:
                self.version = decode(log[-1][1], WeightManifest).version
            await asyncio.sleep(0.002)

    async def _produce(self, bus):
        while True:
            topics = ([EVAL] if self.answering.is_set() else []) + ([TICKETS] if self.sampling.is_set() else [])
            leases = await bus.lease(topics, 2, 0.02) if topics else await asyncio.sleep(0.02) or []
            for lease in leases:
                ticket = decode(lease.payload, Ticket)
                while self.version is None or self.version < ticket.min_version:
                    await asyncio.sleep(0.002)
                await bus.hand_off([self._answer(lease, ticket) if lease.topic == EVAL else self._sample(lease, ticket)])

    def _sample(self, lease, ticket):
        spans = [Span(*self.version, 3, True), Span(*self.version, 2, True)]
        return Move(lease, "rollouts:t", encode(ScoredRollout(rollout_of(ticket, spans))))

    def _answer(self, lease, ticket):
        self.evaluated_while.append((self.version, ticket.min_version, self.trainer.steps))
        one = Evaluated(ticket.metadata["evaluation"], ticket.seq, self.version, ticket.seq % 2 == 0, np.array([1], np.int32), "stop")
        return Move(lease, EVALUATED, encode(one))

    async def _score(self, bus):
        while True:
            for lease in await bus.lease(["rollouts:t"], 4, 0.02):
                rollout = decode(lease.payload, ScoredRollout).rollout
                score = TeacherScore("t", "d", np.full(len(rollout.completion.response_ids), -0.4, np.float32))
                await bus.hand_off([Move(lease, SCORED, encode(ScoredRollout(rollout, (score,))))])

    async def life(self, *, plan=None, store_plan=None, trainer=None, stopping=None, take_over=True):
        """One learner from its start to its end, however that comes. Returns its worker."""
        self.lives += 1
        name = f"learner-{self.lives}"
        async with self.connect(name) as inner:
            bus = Crashing(inner, plan)
            keeper = LeaseKeeper(bus, lease_s=LEASE_S, work_deadline_s=60.0)
            worker = Worker(
                role="learner",
                name=name,
                config=self.config,
                bus=bus,
                pulse=Pulse("learner", name),
                keeper=keeper,
                stopping=stopping or asyncio.Event(),
            )
            self.worker = worker
            mine = trainer or FakeTrainer()

            def build(config, pulse):
                self.trainer = mine
                return mine

            store = Crashing(self.store, store_plan)
            material = Material(prompts=FakePrompts(), questions=self.questions, store=store, build=build)
            async with background(keeper.run()):
                try:
                    await learn(worker, take_over=take_over, material=lambda _: material)
                finally:
                    bus.dead = bus.dead or store.dead
            self.lags.update(mine.lags)
            await keeper.release_all()
            return worker

    async def crash(self, **how):
        """A life that must end in a crash."""
        with pytest.raises((Crash, ExceptionGroup)) as caught:
            await asyncio.wait_for(self.life(**how), 60)
        error = caught.value
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, Crash), repr(error)

    async def finish(self):
        """A last life that must see the run through; then everything is checked."""
        await asyncio.wait_for(self.life(), 60)
        return await self.check()

    async def check(self):
        """Every sample once in the model, the ledger balanced, the audit green; returns result.json."""
        learner = self.config.learner
        trained = self.trainer.trained
        assert len(trained) == learner.steps * learner.batch_size
        assert len(set(trained)) == len(trained), "a sample was applied twice"
        assert max(self.lags, default=0) <= learner.max_staleness
        async with self.connect("auditor") as bus:
            state = await bus.state()
            assert state.cursor == state.live + state.applied + state.dead
            assert state.applied == len(trained)
        report = await asyncio.to_thread(audit, self.directory.root, self.look)
        assert report.passed, str(report)
        return json.loads(self.directory.result.read_text())

    def look(self):
        """For the audit."""
        server = self.server
        if self.url:
            return look_at(self.url, self.name)
        return Look(
            term=server.term,
            cursor=server.cursor,
            applied=server.applied,
            reconciled=server.reconciled == server.term,
            learner=server.learner is not None,
            live={seq: Place(one.topic, one.entry, one.attempt) for seq, one in server.live.items()},
            dead={seq: Letter(one.attempt, one.reason) for seq, one in server.dead.items()},
        )

    async def wipe(self):
        """The server comes back empty."""
        if not self.url:
            self.server.restart()
            return
        async with self.connect("vandal") as bus:
            await bus._client.command("FLUSHALL")

    def published(self):
        return sorted(path.name for path in self.config.weight_directory.glob("term*"))


__all__ = ["LEASE_S", "Crash", "Crashing", "Version", "World"]
