"""A learner's surroundings without Megatron, Redis or models: what each fake records is the truth that the tests compare with."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.codec import encode
from common.messages import (
    Completion,
    Rollout,
    Sampling,
    ScoredRollout,
    Span,
    StepRecord,
    TeacherScore,
    TeacherShare,
    Ticket,
    Version,
)
from learner.batch import payload_digest
from learner.training import StepStats

SAMPLING = Sampling(1.0, 8, (0,))
FIRST = Version(1, 0)


def ticket_of(seq, attempt=0, version=FIRST, teachers=("t",)):
    slip = tuple(TeacherShare(teacher, 1.0) for teacher in teachers)
    return Ticket(seq, attempt, str(seq), np.array([1, 2, 3], np.int32), SAMPLING, slip, version)


def rollout_of(ticket, spans):
    length = sum(span.tokens for span in spans)
    ids = np.arange(length, dtype=np.int32) + ticket.seq
    return Rollout(ticket, Completion(ids, np.full(length, -0.5, np.float32), tuple(spans), "stop"))


def scored_rollout(seq, spans=((1, 0, 4),), attempt=0, teachers=("t",)):
    spans = [Span(*span, True) for span in spans]
    rollout = rollout_of(ticket_of(seq, attempt, teachers=teachers), spans)
    length = len(rollout.completion.response_ids)
    scores = tuple(TeacherScore(teacher, "d", np.full(length, -0.4, np.float32)) for teacher in teachers)
    return ScoredRollout(rollout, scores)


def record_from(term, step, seqs, cursor=None, spans=((1, 0, 4),)):
    payloads = tuple(encode(scored_rollout(seq, spans)) for seq in seqs)
    return StepRecord(
        term, step, tuple(seqs), (0,) * len(seqs), max(seqs) + 1 if cursor is None else cursor, payload_digest(payloads), payloads
    )


class FakePrompts:
    fingerprint = "prompts"

    def __len__(self):
        return 100

    def ticket(self, seq, attempt, min_version):
        return ticket_of(seq, attempt, min_version)


class FakeQuestions:
    fingerprint = "questions"

    def __init__(self, count=0):
        self.count = count

    def __len__(self):
        return self.count

    def tickets(self, evaluation, version):
        metadata = {"evaluation": evaluation, "answer": "1"}
        return [Ticket(index, 0, str(index), np.array([1], np.int32), SAMPLING, (), version, metadata) for index in range(self.count)]


class FakeTrainer:
    """Its model is the list of samples it was trained on, in order."""

    def __init__(self):
        self.steps = 0
        self.trained = []
        self.lags = Counter()
        self.closed = False

    def step(self, record, samples, lr):
        assert record.step == self.steps + 1
        assert [sample.seq for sample in samples] == list(record.seqs)
        self.steps += 1
        self.trained += record.seqs
        tokens = sum(sample.trained for sample in samples)
        for sample in samples:
            self.lags.update(sample.lag_T[sample.mask_T != 0].tolist())
        processed = sum(sample.length for sample in samples)
        return StepStats(self.steps, 0.5, 1.0, lr, len(samples), tokens, processed, 1, {"kl": 0.1}, {"t": 0.1}, 0.001)

    def export(self):
        return {"weight": torch.tensor([float(self.steps), float(sum(self.trained))]), "still": torch.zeros(50)}

    def save(self, directory: Path):
        self.begin_save(directory)()

    def begin_save(self, directory: Path):
        return partial(self.write, directory, json.dumps([self.steps, self.trained]))

    def write(self, directory: Path, state: str):
        (directory / "state.json").write_text(state)

    def load(self, directory: Path):
        self.steps, self.trained = json.loads((directory / "state.json").read_text())

    def close(self):
        self.closed = True


@asynccontextmanager
async def background(*coroutines):
    """Runs them beside the body; they end with it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
