"""Both ends of the pipeline around the scorers, as cheap as they can be on the real bus.

Producers that answer at once: a ticket becomes a rollout of `RESPONSE` tokens. A learner that admits as the real one does (live ≤ (S + 1) ·
batch), leases, decodes, checks that no seq comes twice, settles, and then waits `step_s` where the real one computes; the next batch is
fetched meanwhile. It keeps no journal and has no model. Its idle time is that in which it has no batch to train on.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from common.bus.base import SCORED, TICKETS, Bus, Lease, Move, rollouts
from common.codec import decode, encode
from common.config import RunConfig
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, TeacherShare, Ticket, Version

PROMPT, RESPONSE = 32, 512
TOKENS = PROMPT + RESPONSE
TEACHER = "arithmetic"
_TERM = 1
_FIRST_ID, _LAST_ID = 4, 17
_CHUNK = 64


@dataclass(slots=True)
class Seen:
    """What came out."""

    applied: int = 0
    idle_s: float = 0.0
    idle_since: float = 0.0  # 0: it has a batch
    twice: int = 0
    first: dict[str, float] = field(default_factory=dict)  # scorer -> unix time of its first sample

    @property
    def idle(self) -> float:
        """Seconds, with those of a wait that has not ended."""
        return self.idle_s + (time.monotonic() - self.idle_since if self.idle_since else 0.0)


class Load:
    """`produce` and `train` are tasks."""

    def __init__(self, *, config: RunConfig, producer: Bus, learner: Bus, step_s: float) -> None:
        self._config = config
        self._producer = producer
        self._learner = learner
        self._step_s = step_s
        self._cursor = 0
        self._seqs: set[int] = set()
        self._batches: asyncio.Queue[list[Lease]] = asyncio.Queue(maxsize=1)
        self.seen = Seen()

    async def produce(self) -> None:
        """Tickets in, rollouts out."""
        draws = np.random.default_rng(0)
        answers = [draws.integers(_FIRST_ID, _LAST_ID, RESPONSE).astype(np.int32) for _ in range(_CHUNK)]
        while True:
            leases = await self._producer.lease((TICKETS,), _CHUNK, 1.0)
            moves = [Move(lease, rollouts(TEACHER), _rollout(lease, answers[lease.seq % _CHUNK])) for lease in leases]
            await self._producer.hand_off(moves)

    async def train(self) -> None:
        """Admits, takes batches, waits."""
        await self._learner.claim(_TERM, "bench", 3600.0, False)
        while self._cursor < self._config.window:
            await self._admit()
        while True:
            self.seen.idle_since = time.monotonic()
            batch = await self._batches.get()
            self.seen.idle_s, self.seen.idle_since = self.seen.idle, 0.0
            due = time.monotonic() + self._step_s
            self.seen.applied += await self._learner.settle(_TERM, batch)
            await self._admit()
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def fetch(self) -> None:
        """The next batch, while one is trained on."""
        held: list[Lease] = []
        size = self._config.learner.batch_size
        while True:
            leases = await self._learner.lease((SCORED,), min(16, size - len(held)), 1.0)
            self._note(leases)
            held += leases
            if len(held) == size:
                await self._batches.put(held)
                held = []

    async def _admit(self) -> None:
        count = min(self._config.learner.batch_size, self._config.window - (self._cursor - self.seen.applied))
        tickets = [(seq, encode(_ticket(seq))) for seq in range(self._cursor, self._cursor + count)]
        self._cursor = await self._learner.admit(_TERM, self._cursor, tickets)

    def _note(self, leases: list[Lease]) -> None:
        for lease in leases:
            sample = decode(lease.payload, ScoredRollout)
            assert isinstance(sample, ScoredRollout)
            assert len(sample.scores[0].logprobs) == RESPONSE
            self.seen.twice += lease.seq in self._seqs
            self._seqs.add(lease.seq)
            self.seen.first.setdefault(lease.by, time.time())


def _ticket(seq: int) -> Ticket:
    prompt = np.full(PROMPT, _FIRST_ID + seq % 10, np.int32)
    return Ticket(seq, 0, str(seq), prompt, Sampling(1.0, RESPONSE, ()), (TeacherShare(TEACHER, 1.0),), Version(_TERM, 0))


def _rollout(lease: Lease, answer: np.ndarray) -> bytes:
    ticket = decode(lease.payload, Ticket)
    assert isinstance(ticket, Ticket)
    blank = np.full(RESPONSE, -1.0, np.float32)
    return encode(ScoredRollout(Rollout(ticket, Completion(answer, blank, (Span(_TERM, 0, RESPONSE, True),), "length"))))
