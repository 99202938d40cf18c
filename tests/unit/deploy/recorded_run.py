"""A run's directory as a learner leaves it, that may grow step by step: journal, metrics, checkpoint; the tokenizer spells letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.codec import encode
from common.config import RunConfig, parse_config
from common.messages import (
    Completion,
    Hop,
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
from learner import checkpoint
from learner.journal import Journal
from learner.line import Line

HOSTILE = "</script><img src=x onerror=boom()>"


class LetterTokenizer:
    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "".join(HOSTILE if token == 0 else chr(token) for token in ids)


def spell_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: LetterTokenizer())


def scored(seq: int, gap: float, hops: tuple[Hop, ...] = ()) -> ScoredRollout:
    """Three tokens of which the second has the gap, between the student and the weighted mean of two teachers."""
    shares = (TeacherShare("calm", 3.0), TeacherShare("stern", 1.0))
    prompt = np.array([0, 65], np.int32)
    ticket = Ticket(seq, 0, str(seq), prompt, Sampling(1.0, 8, ()), shares, Version(1, 0))
    spans = (Span(1, 0, 2, True), Span(1, 1, 1, False))
    completion = Completion(np.array([66, 67, 68], np.int32), np.full(3, -0.5, np.float32), spans, "stop")
    top_ids, top_logp = np.array([[66, 67]] * 3, np.int32), np.array([[-0.1, -2.5]] * 3, np.float32)
    calm = TeacherScore("calm", "d", np.full(3, -0.5, np.float32))
    stern = TeacherScore("stern", "d", np.array([-0.5, -0.5 - 4 * gap, -0.5], np.float32), top_ids, top_logp)
    return ScoredRollout(Rollout(ticket, completion), (calm, stern), hops)


class RecordedRun:
    """Step n has the samples 2n and 2n + 1; the second has the larger gap."""

    def __init__(self, directory: Path, **bus: Any) -> None:
        teachers = {"calm": {"path": "t"}, "stern": {"path": "t"}}
        run = {"name": "r", "dir": str(directory)}
        values = {"run": run, "model": {"student": "s"}, "teachers": teachers, "data": {"prompts": "p"}, "evaluation": {"prompts": 0}}
        self.config: RunConfig = parse_config({**values, "bus": bus, "service": {"heartbeat_s": 0.1}})
        self.config.directory.mkdir()
        (self.config.directory / "config.toml").write_text("")
        self.begin()

    def begin(self, term: int = 1, step: int = 0) -> None:
        """A learner's life: it goes on from `step` of the term before."""
        lineage = [Version(1, 0), Version(2, step)][:term]
        line = Line(term=term, step=step, cursor=6, low=0, lineage=lineage, dead={77: "the teacher said NaN"})
        checkpoint.save(self.config.directory / "checkpoints", line.to_json(), {}, lambda _: None)
        self.journal = Journal(self.config.directory / "journal", term)
        self.term = term

    async def step(self, step: int, kl: float | None = None) -> None:
        """One more on record."""
        payloads = tuple(encode(scored(2 * step + index, gap=step + index)) for index in (0, 1))
        await self.journal.append(StepRecord(self.term, step, (2 * step, 2 * step + 1), (0, 0), 2 * step + 2, "", payloads))
        values = {"step": step, "samples": 2, "response_tokens": 6, "wall_s": 0.5, "loss": 1 / step, "kl": kl or 1 / step}
        self.say("metrics", {**values, "staleness": {"0": 3, "1": step}, "kl_by_teacher": {"calm": 0.5, "stern": 0.1}})

    def say(self, file: str, line: dict[str, Any], end: str = "\n") -> None:
        with (self.config.directory / f"{file}.jsonl").open("a") as out:
            out.write(json.dumps(line) + end)
