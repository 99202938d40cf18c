"""The start-up probe (P8): no sample is scored by a teacher that is misloaded, speaks another vocabulary, or is the student itself.

An inert teacher gives a KL of zero or of noise, and a run that looks healthy and learns nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from common.config import RunConfig
from common.errors import ConfigError, Rejected
from common.messages import Completion, Rollout, Sampling, Span, TeacherScore, Ticket, Version
from common.pulse import Pulse
from scorers.examination import Examination
from scorers.teachers import could_be_the_student, open_student, open_teacher
from scorers.teachers.base import Teacher
from scorers.tokenizers import check_end, check_same_tokens, load_vocabulary, stops_of

_SEQUENCES = 4
_PROMPT, _RESPONSE = 4, 12
_SAME_WITHIN = 1e-5  # nats: rounding between two batch layouts


def check_tokenizers(config: RunConfig, name: str) -> list[int]:
    """Ids of the ordinary tokens that student and teacher `name` share; raises ConfigError where their tokenizers differ."""
    student_directory = config.model.student
    student, teacher = load_vocabulary(student_directory), load_vocabulary(config.teachers[name].path)
    check_same_tokens(student, teacher, name)
    check_end(stops_of(student_directory, student) | set(config.sampling.stop_token_ids), teacher, name)
    return student.plain_ids


async def check_teacher(name: str, teacher: Teacher, student: Teacher | None, plain_ids: Sequence[int]) -> None:
    """Raises ConfigError where the teacher cannot score, or scores as `student` does (None: they cannot be the same model)."""
    if student is not None and student.digest == teacher.digest:
        raise _inert(name, "has the student's weights")
    sequences = probe_sequences(plain_ids)
    scores = await _scores(name, teacher, sequences)
    if student is not None:
        others = await _scores("the student", student, sequences)
        if all(_same(mine, theirs) for mine, theirs in zip(scores, others, strict=True)):
            raise _inert(name, "gives the student's own log-probabilities")


def probe_sequences(plain_ids: Sequence[int]) -> list[Rollout]:
    """A few short answers of arbitrary ordinary tokens, always the same."""
    draws = np.random.default_rng(0).choice(np.asarray(plain_ids, np.int32), (_SEQUENCES, _PROMPT + _RESPONSE))
    ticket = Sampling(1.0, _RESPONSE, ())
    blank = np.zeros(_RESPONSE, np.float32)
    spans = (Span(0, 0, _RESPONSE, True),)
    return [
        Rollout(Ticket(seq, 0, "probe", row[:_PROMPT], ticket, (), Version(0, 0)), Completion(row[_PROMPT:], blank, spans, "length"))
        for seq, row in enumerate(draws)
    ]


async def _scores(name: str, teacher: Teacher, sequences: Sequence[Rollout]) -> list[TeacherScore]:
    results = await teacher.score(sequences)
    scores = [result for result in results if isinstance(result, TeacherScore)]
    rejected = next((result for result in results if isinstance(result, Rejected)), None)
    if rejected is not None:
        raise _inert(name, f"cannot score a probe sequence ({rejected.reason})")
    return scores


def _same(mine: TeacherScore, theirs: TeacherScore) -> bool:
    return bool(np.abs(mine.logprobs - theirs.logprobs).max() <= _SAME_WITHIN)


def _inert(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"teacher {name} {what}: nothing could be learned from it; check teachers.{name}.path, or set teachers.{name}.allow_inert = true"
    )


async def open_checked(config: RunConfig, name: str, pulse: Pulse) -> tuple[Teacher, Examination]:
    """Opens teacher `name` and probes it; raises ConfigError. The student is computed only where it could be the same model.

    The examination is to be repeated while the teacher works.
    """
    alike, plain_ids = await asyncio.to_thread(_before_loading, config, name, pulse)
    teacher = await asyncio.to_thread(_timed, open_teacher, config, name, pulse)
    sequences = probe_sequences(plain_ids)
    try:
        if not config.teachers[name].allow_inert:
            await _check(config, name, teacher, plain_ids, pulse, alike=alike)
        return teacher, Examination(name, teacher, sequences, await teacher.score(sequences))
    except BaseException:
        await teacher.aclose()
        raise


async def _check(config: RunConfig, name: str, teacher: Teacher, plain_ids: Sequence[int], pulse: Pulse, *, alike: bool) -> None:
    student = await asyncio.to_thread(_timed, open_student, config, name, pulse) if alike else None
    try:
        await check_teacher(name, teacher, student, plain_ids)
    finally:
        if student is not None:
            await student.aclose()


def _before_loading(config: RunConfig, name: str, pulse: Pulse) -> tuple[bool, list[int]]:
    with pulse.cpu("startup"):
        return could_be_the_student(config, name), check_tokenizers(config, name)


def _timed(opened: Callable[[RunConfig, str, Pulse], Teacher], config: RunConfig, name: str, pulse: Pulse) -> Teacher:
    with pulse.cpu("startup"):
        return opened(config, name, pulse)
