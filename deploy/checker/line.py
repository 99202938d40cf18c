"""The surviving line, rebuilt from the records of the terms that made it; applications are counted, seq by seq.

The newest valid checkpoint names those terms and where each began, as a resume takes it. Guarantee: after `rebuild` every readable record
of the line was applied exactly once, in order, within the staleness bound, on versions that grow, and agrees with the list of every
checkpoint it passes. Where records are deleted or damaged, the next checkpoint's own list stands in, and a note says for which steps.
Raises Violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from deploy.checker.checkpoints import Listing, Version, on_line
from deploy.checker.records import Damage, Record, Sample, read_term, term_directories

START = Version(0, 0)


class Violation(Exception):
    """A promise that is broken; `seq` is the sample it is about, if it is about one."""

    def __init__(self, text: str, seq: int | None = None) -> None:
        super().__init__(text)
        self.seq = seq


@dataclass(slots=True)
class Line:
    """What was found. `counted` says how often each seq was applied; `recent` are the seqs journaled at `tip` or later; `torn`: the
    journal ends in something that cannot be read."""

    max_staleness: int
    tip: Version = START
    version: Version = START
    cursor: int = 0
    counted: Counter[int] = field(default_factory=Counter)
    dead: Mapping[int, str] = field(default_factory=dict)
    lineage: tuple[Version, ...] = ()
    recent: set[int] = field(default_factory=set)
    known_cursor: int = 0  # of the records before `tip`, and its own
    records: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    masked: int = 0
    ghosts: int = 0
    torn: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.version.step


def rebuild(journal: Path, listings: Sequence[Listing], *, max_staleness: int, tip: Version = START) -> Line:
    """`listings`: all valid checkpoints, at least one, lowest version first."""
    newest = listings[-1]
    _check_lineage(newest)
    line = Line(max_staleness, tip=tip, lineage=newest.lineage, dead=newest.dead)
    walk = _Walk(line, on_line(listings, newest.lineage))
    directories = term_directories(journal)
    ends = {mine.term: following.step for mine, following in pairwise(newest.lineage)}
    for term, begun in newest.lineage:
        walk.go(term, begun, ends.get(term), read_term(directories[term]) if term in directories else iter(()))
    walk.reach(newest.step)
    line.cursor = max(line.cursor, newest.cursor)
    line.ghosts += sum(_records_in(directory) for term, directory in directories.items() if term not in {one.term for one in line.lineage})
    return line


def _records_in(directory: Path) -> int:
    return sum(isinstance(one, Record) for one in read_term(directory))


def _check_lineage(newest: Listing) -> None:
    for mine, following in pairwise(newest.lineage):
        if following.term <= mine.term or following.step < mine.step:
            raise Violation(f"the lineage of {newest.directory} goes back from {tuple(mine)} to {tuple(following)}: versions must grow")
    if not newest.lineage or newest.lineage[-1].term != newest.version.term:
        raise Violation(f"the lineage of {newest.directory} does not end in its own term {newest.version.term}")


class _Walk:
    """Applies record after record; `stops` are the checkpoints on the way."""

    def __init__(self, line: Line, stops: Sequence[Listing]) -> None:
        self._line = line
        self._stops = sorted(stops, key=lambda one: (one.step, one.version))
        self._skip_to = 0  # steps up to here are taken from a checkpoint's list

    def go(self, term: int, begun: int, end: int | None, found: Iterator[Record | Damage]) -> None:
        """One term, whose part of the line is begun < step ≤ end."""
        self.reach(begun)
        damage: Damage | None = None
        for one in found:
            if isinstance(one, Damage):
                damage = damage or one
            elif end is not None and one.term == term and one.step > end:
                self._line.ghosts += 1
            else:
                if not self._take(one, term, damage):
                    return
                damage = None
        if damage is not None and end is None:
            self._line.torn = True
            self._line.notes.append(f"the journal ends in a torn record: {damage}")
        if end is not None:
            self.reach(end)

    def reach(self, step: int) -> None:
        """Goes on from a checkpoint's list where the records do not lead so far."""
        while self._line.step < step:
            self._adopt(next(one for one in self._stops if one.step > self._line.step and (one.step >= step or one is self._stops[-1])))

    def _take(self, record: Record, term: int, damage: Damage | None) -> bool:
        """Applies one record; false where the line ends before it."""
        line = self._line
        if record.term != term:
            raise Violation(f"the journal of term {term} holds step {record.step} of term {record.term}, another learner's", _first(record))
        if record.step <= self._skip_to:
            return True
        if record.step > line.step + 1 and not self._bridge(record, damage):
            return False
        if record.step <= self._skip_to:
            return True
        _check_record(record, line)
        _count(record, line)
        for stop in self._stops:
            if stop.step == line.step:
                _compare(line, stop)
        return True

    def _bridge(self, record: Record, damage: Damage | None) -> bool:
        """Over the records that are missing before this one, by a checkpoint's list; false where none reaches so far."""
        between = [one for one in self._stops if self._line.step < one.step < record.step]
        beyond = [one for one in self._stops if one.step >= record.step]
        if between and between[-1].step == record.step - 1:
            self._adopt(between[-1], damage)
        elif beyond:
            self._adopt(beyond[0], damage)
        else:
            self._line.torn = True
            why = f"damaged: {damage}" if damage else "missing"
            self._line.notes.append(
                f"the record of step {self._line.step + 1} is {why}: the line ends before it, and a resume samples the rest again"
            )
            return False
        return True

    def _adopt(self, stop: Listing, damage: Damage | None = None) -> None:
        line = self._line
        lost = next((seq for seq in line.counted if seq not in stop.applied), None)
        if lost is not None:
            raise Violation(f"seq {lost} was applied, and the checkpoint {stop.directory} lacks it", lost)
        why = f"damaged ({damage})" if damage else "gone"
        line.notes.append(f"the records of steps {line.step + 1} to {stop.step} are {why}: {stop.directory.name} alone speaks for them")
        line.counted = Counter(dict.fromkeys(stop.applied, 1))
        line.version, line.cursor = stop.version, max(line.cursor, stop.cursor)
        line.known_cursor = line.cursor
        self._skip_to = stop.step


def _first(record: Record) -> int | None:
    return record.seqs[0] if record.seqs else None


def _check_record(record: Record, line: Line) -> None:
    where = f"step {record.step} of term {record.term}"
    if record.step != line.step + 1 or (record.term, record.step) <= line.version:
        raise Violation(f"{where} follows step {line.step} of term {line.version.term}: versions must grow", _first(record))
    if record.cursor < line.cursor:
        raise Violation(f"the cursor goes back from {line.cursor} to {record.cursor} in {where}")
    twice = next((seq for seq, count in Counter(record.seqs).items() if count + line.counted[seq] > 1), None)
    if twice is not None:
        raise Violation(f"seq {twice} is applied again in {where}: once is all it may have", twice)
    never = next((seq for seq in record.seqs if seq >= record.cursor), None)
    if never is not None:
        raise Violation(f"seq {never} of {where} was never admitted: the cursor is {record.cursor}", never)
    if record.fault:
        raise Violation(f"{where}: {record.fault}", _first(record))


def _count(record: Record, line: Line) -> None:
    line.version = Version(record.term, record.step)
    line.counted.update(record.seqs)
    line.cursor = max(line.cursor, record.cursor)
    line.records += 1
    if line.version <= line.tip:
        line.known_cursor = line.cursor
    if line.version >= line.tip:
        line.recent.update(record.seqs)
    lags: Counter[int] = Counter()
    for seq, sample in zip(record.seqs, record.samples, strict=True):
        _check_sample(record, seq, sample)
        lags.update(_lags(sample, record.step))
    stale = {lag: tokens for lag, tokens in lags.items() if lag > line.max_staleness}
    if sum(stale.values()) != record.masked:
        raise Violation(
            f"step {record.step} of term {record.term} has {sum(stale.values())} tokens of a staleness up to {max(stale, default=0)}, "
            f"beyond {line.max_staleness}, and counts {record.masked} as left out",
            _first(record),
        )
    line.masked += record.masked
    line.staleness.update({lag: tokens for lag, tokens in lags.items() if lag <= line.max_staleness})


def _check_sample(record: Record, seq: int, sample: Sample) -> None:
    where = f"step {record.step} of term {record.term}"
    if sample.seq != seq:
        raise Violation(f"{where} names seq {seq} but carries seq {sample.seq}", seq)
    exact = [span for span in sample.spans if span.exact]
    ahead = next((span for span in sample.spans if span[:2] >= (record.term, record.step)), None)
    if ahead is not None:
        raise Violation(f"seq {seq} of {where} was sampled by weights of step {ahead.step} of term {ahead.term}, which came later", seq)
    back = next(((one, other) for one, other in pairwise(exact) if other[:2] < one[:2]), None)
    if back is not None:
        raise Violation(f"seq {seq} of {where} goes back from the weights of {back[0][:2]} to those of {back[1][:2]}", seq)


def _lags(sample: Sample, step: int) -> Counter[int]:
    """Staleness -> tokens that the student sampled. Step n trains the weights of step n − 1; a dead term's token keeps its step."""
    lags: Counter[int] = Counter()
    at = 0
    for span in sample.spans:
        kept = span.tokens if sample.kept is None else span.tokens - sample.kept[at : at + span.tokens].count(0)
        at += span.tokens
        if kept:
            lags[max(0, step - 1 - span.step)] += kept
    return lags


def _compare(line: Line, stop: Listing) -> None:
    differing = min(stop.applied.symmetric_difference(line.counted), default=None)
    if differing is not None:
        says = "has" if differing in stop.applied else "lacks"
        raise Violation(f"the checkpoint {stop.directory} {says} seq {differing}, against the journal", differing)
