"""pass@1 of one published version on held-out prompts, answered and judged by producers ahead of their other work.

Guarantees: every answer counted was sampled by exactly that version; no question counts twice; an evaluation that the bus has lost is asked
again, one that a learner's death interrupted is asked again by its successor; none lasts longer than three deadlines.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from common.bus.base import EVAL, EVALUATED, Bus
from common.codec import decode, encode
from common.config.sections import EvaluationSection
from common.errors import BusFull, OtherSchema, WireError
from common.messages import Evaluated, Version, WeightManifest
from common.patience import until_mended
from common.pulse import Pulse
from learner.directory import RunDirectory
from learner.disk import append_durably, end_torn_line, once_there_is_room, write_durably
from learner.feeder import EvaluationSource

_ROUNDS = 3
_WAIT_S = 0.5
_LEASE = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`n` answers, of which `correct` were right; n is below what was asked where the deadlines passed."""

    term: int
    step: int
    n: int
    correct: int
    asked: int
    truncated: int
    seconds: float

    @property
    def version(self) -> Version:
        """What answered."""
        return Version(self.term, self.step)

    @property
    def pass_at_1(self) -> float | None:
        """Share of right answers; None where nobody answered."""
        return self.correct / self.n if self.n else None


class Evaluator:
    """Knows when to evaluate, and what came out so far."""

    def __init__(
        self,
        *,
        bus: Bus,
        pulse: Pulse,
        directory: RunDirectory,
        questions: EvaluationSource,
        section: EvaluationSection,
        steps: int,
        term: int,
    ) -> None:
        self._bus = bus
        self._term = term
        self._pulse = pulse
        self._directory = directory
        self._questions = questions
        self._section = section
        self._steps = steps
        self.done: dict[int, Evaluation] = {}

    def load(self, line_step: int) -> WeightManifest | None:
        """Earlier results up to `line_step` (later ones were of a lost line); the version of an evaluation that was cut short."""
        if self._directory.evaluations.exists():
            for text in self._directory.evaluations.read_text().splitlines():
                one = _read(text)
                if one is not None and one.step <= line_step:
                    self.done[one.step] = one
        if not self._directory.open_evaluation.exists():
            return None
        manifest = decode(self._directory.open_evaluation.read_bytes(), WeightManifest)
        assert isinstance(manifest, WeightManifest)
        step = manifest.version.step
        return manifest if step <= line_step and step not in self.done else None

    def due(self, step: int) -> bool:
        """Whether the version of this step is to be evaluated: before, every N, after."""
        if not len(self._questions) or step in self.done:
            return False
        return step in {0, self._steps} or (self._section.every > 0 and step % self._section.every == 0)

    @property
    def best(self) -> Evaluation | None:
        """The best so far, the later of equals."""
        answered = [one for one in self.done.values() if one.n]
        return max(answered, key=lambda one: (one.correct / one.n, one.step), default=None)

    async def run(self, manifest: WeightManifest) -> Evaluation:
        """Asks about the published version and waits for its answers."""
        await once_there_is_room(self._pulse, partial(write_durably, self._directory.open_evaluation, encode(manifest)))
        began = time.monotonic()
        self._pulse.set(evaluating=f"{manifest.version.term}:{manifest.version.step}")
        answers = await self._collect(manifest.version)
        result = Evaluation(
            term=manifest.version.term,
            step=manifest.version.step,
            n=len(answers),
            correct=sum(one.correct for one in answers.values()),
            asked=len(self._questions),
            truncated=sum(one.finish_reason == "length" for one in answers.values()),
            seconds=round(time.monotonic() - began, 3),
        )
        await self._keep(result)
        return result

    async def _keep(self, result: Evaluation) -> None:
        self.done[result.step] = result
        line = asdict(result) | {"pass_at_1": result.pass_at_1, "at": time.time()}
        end_torn_line(self._directory.evaluations)
        await once_there_is_room(self._pulse, partial(append_durably, self._directory.evaluations, json.dumps(line) + "\n"))
        self._directory.open_evaluation.unlink()
        self._pulse.set(evaluating="", accuracy_step=result.step)
        if result.pass_at_1 is not None:
            self._pulse.set(accuracy=result.pass_at_1)
        _log.info("evaluated", extra=line)

    async def _collect(self, version: Version) -> dict[int, Evaluated]:
        name = f"term{version.term}-step{version.step}-{time.time_ns():x}"
        tickets = [(ticket.seq, encode(ticket)) for ticket in self._questions.tickets(name, version)]
        answers: dict[int, Evaluated] = {}
        await self._clear(EVAL, EVALUATED)
        for round_number in range(_ROUNDS):
            missing = [(index, payload) for index, payload in tickets if index not in answers]
            if not missing:
                break
            if round_number:
                _log.warning("an evaluation is asked again", extra={"version": version, "missing": len(missing)})
                await self._clear(EVAL)
            await until_mended(self._pulse, "server memory", partial(self._bus.ask, self._term, EVAL, missing), BusFull)
            await self._await_answers(name, version, answers, len(tickets))
        if len(answers) < len(tickets):  # nobody need work on what is no longer awaited
            await self._clear(EVAL, EVALUATED)
        return answers

    async def _clear(self, *topics: str) -> None:
        for topic in topics:
            await self._bus.clear(self._term, topic)

    async def _await_answers(self, name: str, version: Version, answers: dict[int, Evaluated], wanted: int) -> None:
        """Until all are there, the bus has lost some, or the deadline passes."""
        deadline = time.monotonic() + self._section.deadline_s
        while len(answers) < wanted and time.monotonic() < deadline:
            left = max(0.01, min(_WAIT_S, deadline - time.monotonic()))
            leases = await self._bus.lease([EVALUATED], _LEASE, left)
            for lease in leases:
                one = _answer(lease.payload)
                if one is not None and one.evaluation == name and one.version == version:
                    answers.setdefault(one.index, one)
            if leases:
                await self._bus.answer(self._term, leases)
                self._pulse.set(evaluated=len(answers), evaluation_size=wanted)
            elif await self._lost(wanted - len(answers)):
                return
            await asyncio.sleep(0)

    async def _lost(self, missing: int) -> bool:
        backlog = (await self._bus.state()).backlog
        return missing > 0 and not backlog.get(EVAL, 0) and not backlog.get(EVALUATED, 0)


def _answer(payload: bytes) -> Evaluated | None:
    try:
        message = decode(payload, Evaluated)
    except OtherSchema:
        raise
    except WireError as error:
        _log.warning("an answer that cannot be read", extra={"error": str(error)})
        return None
    assert isinstance(message, Evaluated)
    return message


def _read(text: str) -> Evaluation | None:
    try:
        values: dict[str, Any] = json.loads(text)
    except ValueError:  # a line that a crash cut off
        return None
    return Evaluation(**{name: values[name] for name in Evaluation.__dataclass_fields__})
