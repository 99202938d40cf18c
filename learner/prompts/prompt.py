"""From rows to checked, tokenised prompts; every mistake is one sentence with the place of the row.

Guarantee: what passes here can be sampled and scored: at least one token, no longer than the context allows, ids of the student's
vocabulary, and teachers that the run has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # what people write into prompts files

import numpy as np

from common.config.sections import TeacherSection
from common.errors import ConfigError
from common.messages import Ids, TeacherShare
from learner.prompts.rows import Row
from learner.prompts.student import Student

Slip = tuple[TeacherShare, ...]
Teachers = Mapping[str, TeacherSection]


@dataclass(frozen=True, slots=True)
class Prompt:
    """`slips` has one slip per rotation of the prompt's teachers; empty for evaluations."""

    ids: Ids
    slips: tuple[Slip, ...]
    answer: str
    metadata: Mapping[str, str]


def prepare_prompts(rows: Sequence[Row], student: Student, room: tuple[int, str], teachers: Teachers | None) -> tuple[Prompt, ...]:
    """One Prompt per row. `room` is how long it may be and what sets the limit; without `teachers` no row needs one. Raises ConfigError."""
    known_slips: dict[tuple[str, ...], tuple[Slip, ...]] = {}
    prompts = []
    for row, ids in zip(rows, _encode(rows, student), strict=True):
        slips: tuple[Slip, ...] = ()
        if teachers is not None:
            names = _teachers_of(row, teachers)
            if names not in known_slips:
                known_slips[names] = _rotations(names, teachers)
            slips = known_slips[names]
        prompts.append(Prompt(_checked_ids(row, ids, student, room), slips, _text(row.fields.get("answer", "")), _metadata(row)))
    return tuple(prompts)


def check_answers(rows: Sequence[Row]) -> None:
    """Raises ConfigError unless every row has an `answer` that is text or a number."""
    for row in rows:
        if "answer" not in row.fields:
            raise ConfigError(f"{row.where} has no `answer`: an evaluation needs one for every prompt")
        if isinstance(row.fields["answer"], dict | list):
            raise ConfigError(f"{row.where}: `answer` must be text or a number")


def _encode(rows: Sequence[Row], student: Student) -> list[Sequence[int]]:
    """Token ids of every row; texts are tokenised together, which is far faster than one by one."""
    texts: dict[bool, list[tuple[int, str]]] = {False: [], True: []}
    encoded: list[Sequence[int]] = [()] * len(rows)
    for number, row in enumerate(rows):
        match row.fields:
            case {"prompt": _, "messages": _}:
                raise ConfigError(f"{row.where} has both `prompt` and `messages`: keep one")
            case {"prompt": str(text)}:
                texts[False].append((number, text))
            case {"prompt": list(ids)} if all(type(token) is int for token in ids):
                encoded[number] = ids
            case {"messages": list(messages)} if messages and all(isinstance(message, dict) for message in messages):
                texts[True].append((number, student.render([_present(message) for message in messages], row.where)))
            case {"messages": _}:
                raise ConfigError(f"{row.where}: `messages` must be a list of objects with `role` and `content`")
            case {"prompt": _}:
                raise ConfigError(f"{row.where}: `prompt` must be text or a list of token ids (integers)")
            case _:
                raise ConfigError(f"{row.where} has neither `prompt` nor `messages`: give it one of them")
    for chats, numbered in texts.items():
        for (number, _), ids in zip(numbered, student.encode([text for _, text in numbered], chats=chats), strict=True):
            encoded[number] = ids
    return encoded


def _present(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the nulls that columns of structs bring along."""
    return {key: value for key, value in message.items() if value is not None}


def _checked_ids(row: Row, ids: Sequence[int], student: Student, room: tuple[int, str]) -> Ids:
    longest, limit = room
    if not ids:
        raise ConfigError(f"{row.where} has an empty prompt: it needs at least one token")
    if len(ids) > longest:
        raise ConfigError(f"{row.where} has a prompt of {len(ids)} tokens, longer than {longest} ({limit}): shorten it or raise the limit")
    if min(ids) < 0 or max(ids) >= student.vocabulary:
        raise ConfigError(f"{row.where} has a prompt with ids that are not in the student's vocabulary of {student.vocabulary}")
    return np.array(ids, np.int32)


def _teachers_of(row: Row, teachers: Teachers) -> tuple[str, ...]:
    names = row.fields.get("teacher")
    if names is None:
        if len(teachers) > 1 and "default" not in teachers:
            raise ConfigError(f"{row.where} names no `teacher`: write one of {_list(teachers)}, or call one of them `default`")
        return ("default" if "default" in teachers else next(iter(teachers)),)
    listed = tuple(names) if isinstance(names, list) else (names,)
    for name in listed:
        if not isinstance(name, str) or name not in teachers:
            raise ConfigError(f"{row.where} names the unknown teacher {name!r}: known are {_list(teachers)}")
    if not listed or len(set(listed)) < len(listed):
        raise ConfigError(f"{row.where}: `teacher` must be one name or a list of different names")
    return listed


def _rotations(names: tuple[str, ...], teachers: Teachers) -> tuple[Slip, ...]:
    """All rotations of the slip with weights that sum to 1, so that no teacher is always the last in line."""
    total = sum(teachers[name].weight for name in names)
    slip = tuple(TeacherShare(name, teachers[name].weight / total) for name in names)
    return tuple(slip[first:] + slip[:first] for first in range(len(slip)))


def _metadata(row: Row) -> dict[str, str]:
    values = row.fields.get("metadata", {})
    if not isinstance(values, dict):
        raise ConfigError(f"{row.where}: `metadata` must be an object")
    return {str(key): _text(value) for key, value in values.items() if value is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _list(teachers: Teachers) -> str:
    return ", ".join(sorted(teachers))
