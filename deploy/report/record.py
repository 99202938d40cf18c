"""What a run's directory says of the run, as the page draws it: one row per step, the evaluations, tokens by staleness, the outcome.

Guarantees: reading goes on where it stopped, so that following a long run costs what is new; of several lines of a step the last counts; a
line that is not finished yet, or that a crash cut off, does not; a file that was begun anew begins a new epoch.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # JSON values

from common.config import RunConfig
from learner.directory import RunDirectory
from learner.line import Line

_ROW = frozenset(
    {"step", "at", "samples", "response_tokens", "wall_s", "loss", "kl", "kl_by_teacher", "behaviour_kl", "staleness", "masked_tokens"}
)
_RESULT = ("pass_at_1", "samples", "tokens", "wall_s", "steps", "mixed_version_share", "ledger", "retried", "cpu_s")
_MOST_ROWS = 1500
MOST_LETTERS = 100


class Tail:
    """The finished lines of a JSON Lines file, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._at = 0

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether another file lies there than before, and the lines that are new."""
        before = self._inode, self._at
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._at:
                    self._inode, self._at = facts.st_ino, 0
                file.seek(self._at)
                text = file.read()
        except FileNotFoundError:
            self._inode, self._at, text = 0, 0, b""
        whole = text[: text.rfind(b"\n") + 1]
        began = self._at
        self._at += len(whole)
        return before[1] > 0 and (before[0] != self._inode or began < before[1]), list(_parsed(whole))


def _parsed(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            yield values


class Record:
    """A run's directory; `refresh` reads what is new. `epoch` and `revision` say to a reader what it has already."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._metrics, self._asked = Tail(directory.metrics), Tail(directory.evaluations)
        self.epoch = uuid.uuid4().hex
        self.revision = 0
        self._rows: dict[int, tuple[int, dict[str, Any]]] = {}  # step -> revision, row
        self._evaluations: dict[int, dict[str, Any]] = {}
        self.result: dict[str, Any] = {}

    def refresh(self) -> None:
        """Reads files; a missing one is an empty one."""
        anew, lines = self._metrics.read()
        if anew:
            self.epoch, self._rows = uuid.uuid4().hex, {}
        for line in lines:
            if "samples" in line:
                self.revision += 1
                self._rows[line["step"]] = self.revision, {key: line[key] for key in line.keys() & _ROW}
        anew, lines = self._asked.read()
        self._evaluations = ({} if anew else self._evaluations) | {line["step"]: line for line in lines if "pass_at_1" in line}
        result = self._directory.finished() or {}
        self.result = {key: result[key] for key in _RESULT if key in result}

    @property
    def last_step(self) -> int:
        """0 before the first."""
        return max(self._rows, default=0)

    def rows(self, after: int = 0) -> list[dict[str, Any]]:
        """In order of step, those that came or changed after the revision; from the beginning, as many as a chart can show."""
        changed = [row for _, (revision, row) in sorted(self._rows.items()) if revision > after]
        return changed if after else _thinned(changed)

    def evaluations(self) -> list[dict[str, Any]]:
        """[{step, pass_at_1, n}]."""
        return [{key: line.get(key) for key in ("step", "pass_at_1", "n")} for _, line in sorted(self._evaluations.items())]

    def document(self, after: int = 0) -> dict[str, Any]:
        """For the page, which has everything up to the revision `after`."""
        return {
            "epoch": self.epoch,
            "revision": self.revision,
            "steps": self.rows(after),
            "evaluations": self.evaluations(),
            "staleness": self.staleness(),
            "result": self.result,
        }

    def staleness(self) -> list[tuple[int, int]]:
        """(lag in steps, trained tokens) over the whole run."""
        tokens: dict[int, int] = {}
        for _, row in self._rows.values():
            for lag, count in row.get("staleness", {}).items():
                tokens[int(lag)] = tokens.get(int(lag), 0) + count
        return sorted(tokens.items())


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stride = -(-len(rows) // _MOST_ROWS) if rows else 1
    return rows if stride == 1 else [*rows[:-1:stride], rows[-1]]


def dead_letters(line: Line | None) -> dict[str, Any]:
    """As a checkpoint knows them: numbers and reasons."""
    dead = {} if line is None else line.dead
    return {"count": len(dead), "letters": [{"seq": seq, "reason": dead[seq]} for seq in sorted(dead)[:MOST_LETTERS]]}


def run_facts(config: RunConfig) -> dict[str, Any]:
    """What a reader has to know of the run, whatever it does."""
    return {
        "run": config.run.name,
        "student": config.model.student.name,
        "teachers": list(config.teachers),
        "loss": config.loss.kind,
        "bound": config.learner.max_staleness,
        "batch": config.learner.batch_size,
        "window": config.window,
        "total_steps": config.learner.steps,
    }
