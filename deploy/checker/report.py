"""What the audit found, and the history of the sample that a violation is about."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.checker.checkpoints import Listing, Version
from deploy.checker.records import Record, read_term, term_directories
from deploy.checker.server import Look


@dataclass(slots=True)
class Report:
    """`violation` is empty where the proof holds; `history` tells of the seq it names; `proved_steps` have their records."""

    steps: int = 0
    proved_steps: int = 0
    samples: int = 0
    cursor: int = 0
    dead: int = 0
    live: int | None = None
    ghosts: int = 0
    lineage: Sequence[Version] = ()
    staleness: Counter[int] = field(default_factory=Counter)
    masked_tokens: int = 0
    notes: Sequence[str] = ()
    violation: str = ""
    history: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether the proof holds."""
        return not self.violation

    def __str__(self) -> str:
        live = "not seen" if self.live is None else self.live
        head = f"{self.samples} samples in {self.steps} steps ({self.proved_steps} of them with their records)"
        counts = f"cursor {self.cursor}, live {live}, dead {self.dead}, records of dead terms {self.ghosts}"
        terms = ", ".join(f"term {term} from step {step}" for term, step in self.lineage)
        stale = ", ".join(f"{lag}: {tokens}" for lag, tokens in sorted(self.staleness.items()))
        verdict = "every sample was applied once" if self.passed else f"VIOLATION: {self.violation}"
        middle = [f"trained tokens by staleness: {stale}; left out as staler: {self.masked_tokens}"] if stale else []
        return "\n".join([f"{head}; {counts}; {terms}", *middle, *self.notes, verdict, *self.history])


def history(journal: Path, listings: Sequence[Listing], look: Look | None, seq: int) -> Iterator[str]:
    """Every record of every term that names the seq, every checkpoint that lists it, and where the server has it."""
    for directory in term_directories(journal).values():
        for one in read_term(directory):
            if isinstance(one, Record) and seq in one.seqs:
                yield f"  seq {seq}: {_journaled(one, one.seqs.index(seq))}"
    holding = [one.directory.name for one in listings if seq in one.applied]
    if holding:
        yield f"  seq {seq}: in the list of {', '.join(holding)}"
    buried = {one.dead[seq]: one.directory.name for one in listings if seq in one.dead}
    for reason, name in buried.items():
        yield f"  seq {seq}: dead in {name} ({reason})"
    if look is not None and seq in look.live:
        topic, entry, attempt = look.live[seq]
        yield f"  seq {seq}: live in {topic} as entry {entry}, attempt {attempt}, since {_when(entry)}"
    if look is not None and seq in look.dead:
        yield f"  seq {seq}: dead on the server after attempt {look.dead[seq].attempt} ({look.dead[seq].reason})"


def _journaled(record: Record, index: int) -> str:
    text = f"journaled by term {record.term} in step {record.step}, attempt {record.attempts[index]}, cursor {record.cursor}"
    if index < len(record.origins):
        entry, _, worker = record.origins[index].partition(" ")
        text += f", entry {entry} handed off by {worker} at {_when(entry)}"
    return text


def _when(entry: str) -> str:
    """A stream entry's name begins with the server's milliseconds."""
    return dt.datetime.fromtimestamp(int(entry.partition("-")[0]) / 1000, dt.UTC).isoformat(timespec="milliseconds")
