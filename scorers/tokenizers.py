"""Student and teacher must mean the same by every token id: maps are compared, never sizes (embeddings may carry padding rows)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # transformers' tokenizers and JSON are untyped

from common.errors import ConfigError

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What one tokenizer says."""

    ids: Mapping[str, int]
    eos_id: int | None
    special_ids: frozenset[int]

    @property
    def plain_ids(self) -> list[int]:
        """Ids of ordinary tokens, ascending."""
        return sorted(set(self.ids.values()) - self.special_ids)


def load_vocabulary(directory: Path) -> Vocabulary:
    """Of a model directory's tokenizer: from its files where they say it all, since transformers brings torch along."""
    return read_vocabulary(directory) or ask_transformers(directory)


def read_vocabulary(directory: Path) -> Vocabulary | None:
    """What tokenizer.json and tokenizer_config.json say; None where it takes the tokenizer's class to know the rest."""
    from tokenizers import Tokenizer

    try:
        settings: Any = json.loads((directory / "tokenizer_config.json").read_text())
        ids = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab(with_added_tokens=True)
        added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
        end = _text(settings["eos_token"])
        known = [_text(entry) for entry in settings.get("added_tokens_decoder", {}).values()]
        named = [_text(value) for key, value in settings.items() if key.endswith("_token") and isinstance(value, str | dict)]
    except Exception:  # noqa: BLE001 - the Rust library raises this very class; transformers says what is wrong
        return None
    if not {end, *known} <= ids.keys():
        return None
    special = {entry["id"] for entry in added if entry["special"]} | {ids[token] for token in named if token in ids}
    return Vocabulary(ids, ids[end], frozenset(special))


def _text(token: Any) -> str:
    """Written as it is, or with how it is to be stripped."""
    text: str = token["content"] if isinstance(token, dict) else token
    return text


def ask_transformers(directory: Path) -> Vocabulary:
    """The same of any tokenizer; raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"{directory} has no tokenizer that can be loaded ({why}): complete the download") from None
    return Vocabulary(tokenizer.get_vocab(), tokenizer.eos_token_id, frozenset(tokenizer.all_special_ids))


def check_same_tokens(student: Vocabulary, teacher: Vocabulary, name: str) -> None:
    """Raises ConfigError naming the first tokens whose ids differ."""
    if student.ids == teacher.ids:
        return
    differing = [token for token in student.ids.keys() | teacher.ids.keys() if student.ids.get(token) != teacher.ids.get(token)]
    differing.sort(key=lambda token: (min(student.ids.get(token, 1 << 62), teacher.ids.get(token, 1 << 62)), token))
    shown = "; ".join(f"{t!r} is {_id(student, t)} in the student's and {_id(teacher, t)} in the teacher's" for t in differing[:_SHOWN])
    raise ConfigError(
        f"the tokenizers of model.student and teachers.{name} differ in {len(differing)} tokens ({shown}): "
        "take a teacher with the student's tokenizer"
    )


def check_end(student_stops: Collection[int], teacher: Vocabulary, name: str) -> None:
    """The token with which the teacher ends an answer must end the student's, else answers grow without end."""
    if teacher.eos_id is None or teacher.eos_id in student_stops:
        return
    token = next((token for token, index in teacher.ids.items() if index == teacher.eos_id), "?")
    raise ConfigError(
        f"teacher {name} ends its answers with {token!r} (id {teacher.eos_id}), which does not stop the student: "
        f"add {teacher.eos_id} to sampling.stop_token_ids, or take a teacher with the student's end of sequence"
    )


def stops_of(directory: Path, vocabulary: Vocabulary) -> set[int]:
    """Ids that end an answer by the model directory itself: tokenizer, generation_config.json, config.json."""
    stops = set() if vocabulary.eos_id is None else {vocabulary.eos_id}
    for file in ("generation_config.json", "config.json"):
        if (directory / file).is_file():
            listed = json.loads((directory / file).read_text()).get("eos_token_id")
            stops |= set(listed) if isinstance(listed, list) else {listed} - {None}
    return stops


def _id(vocabulary: Vocabulary, token: str) -> int | str:
    return vocabulary.ids.get(token, "missing")
