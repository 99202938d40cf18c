"""Proves from journal, checkpoints and bus that every sample had its effect exactly once (P2), within the staleness bound (P3).

Counts applications per seq instead of asking for membership; knows the surviving line from the lineage of the newest valid checkpoint, as
a resume does; says the first violation with the history of the seq. Reads only. Where old segments are deleted, the proof begins at the
oldest checkpoint from which the records are complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from common.bus.base import Bus, BusState
from common.config import RunConfig
from common.errors import ConfigError, WireError
from common.messages import StepRecord, Version
from learner import checkpoint, journal
from learner.batch import payload_digest, samples_of, scored_of
from learner.directory import RunDirectory
from learner.line import Line

_UNSETTLED_STEPS = 2
"""A record is durable before it is settled, and one batch is prepared ahead: the last records may still be live on the bus."""


@dataclass(frozen=True, slots=True)
class BusView:
    """A look at the bus during which nothing changed."""

    state: BusState
    live: frozenset[int]
    dead: frozenset[int]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a line: `records` after `base`, in order, and checkpoints on it."""

    base: Line
    records: Iterable[StepRecord]
    checkpoints: Sequence[Line]
    max_staleness: int
    bus: BusView | None = None


@dataclass(slots=True)
class AuditReport:
    """`violation` is empty where the proof holds; `history` tells of the seq it names."""

    first_step: int = 0
    steps: int = 0
    samples: int = 0
    cursor: int = 0
    dead: int = 0
    live: int | None = None
    lineage: Sequence[Version] = ()
    staleness: Counter[int] = field(default_factory=Counter)
    masked_tokens: int = 0
    violation: str = ""
    history: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether the proof holds."""
        return not self.violation

    def __str__(self) -> str:
        head = f"{self.samples} samples in steps {self.first_step + 1} to {self.steps}, cursor {self.cursor}, dead {self.dead}"
        terms = ", ".join(f"term {version.term} from step {version.step}" for version in self.lineage)
        verdict = "every sample was applied once" if self.passed else f"VIOLATION: {self.violation}"
        return "\n".join([f"{head}; {terms}", verdict, *self.history])


class _Violation(Exception):
    def __init__(self, text: str, seq: int | None = None) -> None:
        super().__init__(text)
        self.seq = seq


def examine(evidence: Evidence) -> tuple[AuditReport, int | None]:
    """The proof; pure. With a violation comes the seq it is about, if it is about one."""
    report = AuditReport(first_step=evidence.base.step, steps=evidence.base.step, lineage=evidence.base.lineage)
    try:
        line = _walk(evidence, report)
        if evidence.bus is not None:
            _compare_with_bus(line, evidence.bus, _recent(report, line))
    except _Violation as violation:
        report.violation = str(violation)
        return report, violation.seq
    return report, None


def _walk(evidence: Evidence, report: AuditReport) -> Line:
    """Applies the records one by one, as the learner must have done."""
    line = Line.from_json(evidence.base.to_json())
    applications: Counter[int] = Counter()
    latest = Version(0, 0)
    for record in evidence.records:
        _check_record(record, line, latest, applications)
        _check_samples(record, evidence.max_staleness, report)
        line.apply(record)
        line.term = record.term
        latest = Version(record.term, record.step)
        for kept in evidence.checkpoints:
            if kept.step == line.step:
                _check_checkpoint(line, kept)
        report.steps, report.samples, report.cursor = line.step, report.samples + len(record.seqs), line.cursor
    newest = max(evidence.checkpoints, key=lambda one: one.version, default=evidence.base)
    line.bury(newest.dead)
    line.cursor = max(line.cursor, newest.cursor)
    report.cursor, report.dead, report.lineage = line.cursor, len(line.dead), newest.lineage
    return line


def _check_record(record: StepRecord, line: Line, latest: Version, applications: Counter[int]) -> None:
    where = f"step {record.step} of term {record.term}"
    if record.step != line.step + 1:
        raise _Violation(f"{where} follows step {line.step}")
    if (record.term, record.step) <= latest:
        raise _Violation(f"{where} follows version {tuple(latest)}: versions must grow")
    applications.update(record.seqs)
    for seq in record.seqs:
        if applications[seq] > 1 or seq in line:
            raise _Violation(f"seq {seq} is applied again in {where}", seq)
        if seq >= record.cursor:
            raise _Violation(f"seq {seq} of {where} was never admitted: the cursor is {record.cursor}", seq)
    if payload_digest(record.payloads) != record.digest:
        raise _Violation(f"the payloads of {where} do not have the digest of their record")


def _check_samples(record: StepRecord, max_staleness: int, report: AuditReport) -> None:
    where = f"step {record.step} of term {record.term}"
    try:
        scored = scored_of(record)
    except WireError as error:
        raise _Violation(f"a payload of {where} cannot be read: {error}") from None
    for seq, one in zip(record.seqs, scored, strict=True):
        if one.rollout.ticket.seq != seq:
            raise _Violation(f"{where} names seq {seq} but carries seq {one.rollout.ticket.seq}", seq)
        ahead = [span for span in one.rollout.completion.versions if span.term == record.term and span.step >= record.step]
        if ahead:
            raise _Violation(f"seq {seq} of {where} was sampled by weights of step {ahead[0].step}", seq)
    _, consumed = samples_of(record, scored, max_staleness)
    if max(consumed.staleness, default=0) > max_staleness:
        raise _Violation(f"{where} trained tokens of staleness {max(consumed.staleness)}, more than {max_staleness}")
    if consumed.masked != record.masked_tokens:
        raise _Violation(f"{where} says {record.masked_tokens} masked tokens, its payloads have {consumed.masked}")
    report.staleness.update(consumed.staleness)
    report.masked_tokens += consumed.masked


def _check_checkpoint(line: Line, kept: Line) -> None:
    differing = [seq for seq in range(max(line.cursor, kept.cursor)) if (seq in line) != (seq in kept)]
    if differing:
        says = "has" if differing[0] in kept else "lacks"
        raise _Violation(f"the checkpoint of {tuple(kept.version)} {says} seq {differing[0]}, against the journal", differing[0])


def _recent(report: AuditReport, line: Line) -> int:
    """Numbers from the samples of the last records on may be applied and not yet settled."""
    per_step = report.samples // max(1, report.steps - report.first_step)
    return min(line.applied, _UNSETTLED_STEPS * per_step)


def _compare_with_bus(line: Line, bus: BusView, unsettled_at_most: int) -> None:
    state = bus.state
    if state.cursor != state.live + state.applied + state.dead:
        raise _Violation(f"the ledger: cursor {state.cursor} is not live {state.live} + applied {state.applied} + dead {state.dead}")
    unsettled = [seq for seq in bus.live if seq in line]
    if len(unsettled) > unsettled_at_most:
        raise _Violation(f"{len(unsettled)} applied samples are still live on the bus, such as {unsettled[0]}", unsettled[0])
    for seq in range(state.cursor):
        places = ((seq in line) or (seq in bus.live)) + (seq in bus.dead)
        if places != 1:
            raise _Violation(f"seq {seq} is in {places} of applied, live and dead", seq)


async def audit(run_directory: Path, bus: Bus | None) -> AuditReport:
    """Examines a run's directory, and its bus if there is one. Raises ConfigError where there is no run."""
    directory = RunDirectory(run_directory)
    if not directory.config.exists():
        raise ConfigError(f"{run_directory} holds no run: give the directory runs/NAME or the run's TOML")
    config = RunConfig.model_validate_json(directory.config.read_text())
    view = await _look(bus) if bus is not None else None  # before the journal: what is settled is then in it
    evidence = _evidence(directory, config.learner.max_staleness, view)
    if evidence is None:
        return AuditReport(violation="no checkpoint can be read: nothing can be proved")
    report, seq = examine(evidence)
    report.live = view.state.live if view is not None else None
    if seq is not None:
        report.history = list(_history(directory, seq))
    return report


async def _look(bus: Bus) -> BusView:
    while True:
        before = await bus.state()
        live, dead = frozenset(await bus.live()), frozenset(await bus.dead_letters())
        after = await bus.state()
        if (before.cursor, before.applied, before.dead, before.term) == (after.cursor, after.applied, after.dead, after.term):
            return BusView(after, live, dead)


def _evidence(directory: RunDirectory, max_staleness: int, view: BusView | None) -> Evidence | None:
    newest = checkpoint.newest(directory.checkpoints)
    if newest is None:
        return None
    lineage = newest.line.lineage
    kept = [line for line in _valid_lines(directory) if line.lineage == lineage[: len(line.lineage)] and _on_line(line, lineage)]
    bases = [Line(), *sorted(kept, key=lambda line: line.version)]
    base = next(base for base in bases if base.version == newest.version or _complete(directory, base, newest.line))
    return Evidence(base, _records(directory, lineage, base.step), kept, max_staleness, view)


def _valid_lines(directory: RunDirectory) -> Iterator[Line]:
    for version in checkpoint.versions(directory.checkpoints):
        try:
            yield checkpoint.load(directory.checkpoints, version).line
        except ValueError:
            continue


def _on_line(line: Line, lineage: Sequence[Version]) -> bool:
    """Whether the next term of the lineage began at this checkpoint's step or later."""
    following = lineage[len(line.lineage) :]
    return not following or line.step <= following[0].step


def _records(directory: RunDirectory, lineage: Sequence[Version], after: int) -> Iterator[StepRecord]:
    ends: Mapping[int, int] = {mine.term: following.step for mine, following in pairwise(lineage)}
    for term, begun in lineage:
        end = ends.get(term)
        if end is None or end > max(after, begun):
            yield from journal.records(directory.journal, term, after=max(after, begun), until=end)


def _complete(directory: RunDirectory, base: Line, newest: Line) -> bool:
    """Whether the records lead from `base` to the newest checkpoint."""
    expected = base.step
    for record in _records(directory, newest.lineage, base.step):
        if record.step != expected + 1:
            return False
        expected = record.step
        if expected >= newest.step:
            break
    return expected >= newest.step


def _history(directory: RunDirectory, seq: int) -> Iterator[str]:
    """Every record of every term that names the seq."""
    for term in journal.terms(directory.journal):
        first = journal.first_step(directory.journal, term)
        for record in journal.records(directory.journal, term, after=first - 1):
            if seq in record.seqs:
                attempt = record.attempts[record.seqs.index(seq)]
                yield f"  seq {seq}: journaled by term {term} in step {record.step}, attempt {attempt}, cursor {record.cursor}"
