"""`reflux trace`: samples' lives as Chrome's trace JSON (Perfetto reads it), from the journal and the metrics alone.

Guarantees: one track per sample, whose spans nest and follow one another; every moment is on record. On record are: when the ticket was
admitted and when the scored sample was handed to the learner (the server's clock), when each worker began and ended its part (its own
clock), and when the step began and ended (the learner's clock). Clocks differ: a moment that was read as later than the next one is put at
that one, and `moved_ms` in the args says by how much; the learner's clock stays. A journal of schema 1 has no hops: one span then stands
for all before the hand-off, and begins when the weights that the ticket waited for had been computed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any  # JSON values

from common.codec import decode
from common.config import RunConfig
from common.errors import ConfigError
from common.messages import Hop, ScoredRollout, Span, StepRecord, Version
from learner.directory import RunDirectory
from learner.metrics import read_metrics
from learner.surviving import newest_line, surviving_records

_NEWEST = 200
"""Samples that are shown where none is named."""
_SAMPLES, _LEARNER = 1, 2
"""Process numbers: how the viewer groups tracks."""


@dataclass(frozen=True, slots=True)
class Life:
    """Of one sample; times in unix seconds, those of `hops` in milliseconds, None where nothing is on record."""

    seq: int
    attempt: int
    term: int
    step: int
    admitted_after: float | None
    scored: float | None
    began: float
    applied: float
    entry: str
    scorer: str
    min_version: Version
    versions: tuple[Span, ...]
    teachers: tuple[str, ...]
    tokens: int
    finish: str
    hops: tuple[Hop, ...]

    def spans(self) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
        """Name, begin, end and facts; the first holds the others."""
        if len(self.hops) != 1 + len(self.teachers):
            for name, begin, end in self._without_hops():
                yield name, begin, end, {}
            return
        read = [hop_ms / 1000 for hop_ms in (self.hops[0].added or self.hops[0].began, *_worked(self.hops))]
        read += [self.began, self.applied]
        moments = _in_order(read)
        moved = [round(1000 * (was - now)) for was, now in zip(read, moments, strict=True)]
        yield f"sample {self.seq}", moments[0], self.applied, {}
        for index, (name, facts) in enumerate(self._stages()):
            late = {"moved_ms": moved[index]} if moved[index] else {}
            yield name, moments[index], moments[index + 1], facts | late

    def _stages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What lies between two moments, in order."""
        producer, *scorers = self.hops
        yield "waits for a producer", {"attempt": self.attempt, "min_version": self.min_version}
        yield f"sampled by {producer.worker}", {"versions": self.versions, "tokens": self.tokens}
        for scorer, teacher in zip(scorers, self.teachers, strict=True):
            yield f"waits for a scorer of {teacher}", {"handed_off": scorer.added / 1000}
            yield f"scored by {scorer.worker}", {"teacher": teacher}
        yield "waits for its batch, journaled, settled", {"handed_off": self.scored}
        yield f"trained in step {self.step}", {}

    def _without_hops(self) -> Iterator[tuple[str, float, float]]:
        scored = min(self.began, self.scored) if self.scored is not None else self.began
        start = min(scored, self.admitted_after) if self.admitted_after is not None else scored
        yield f"sample {self.seq}", start, self.applied
        yield "admitted (at the earliest), sampled, scored", start, scored
        yield "waits for its batch, journaled, settled", scored, self.began
        yield f"trained in step {self.step}", self.began, self.applied


def write_trace(config: RunConfig, seqs: Collection[int], out: Path) -> int:
    """Writes `out`; returns how many samples it shows. ConfigError where one is on no record."""
    directory = RunDirectory(config.directory)
    steps = {line["step"]: line for line in read_metrics(directory.metrics)}
    lives = list(_lives(directory, steps, seqs))
    if missing := set(seqs) - {life.seq for life in lives}:
        raise ConfigError(_not_there(directory, min(missing)))
    if not lives:
        raise ConfigError(f"{directory.root} has no applied samples on record yet: let the run take a step, or name another run")
    shown = lives if seqs else lives[-_NEWEST:]
    wanted = {life.step for life in shown}
    events = [*_names(shown), *_tracks(shown), *_steps([steps[step] for step in sorted(wanted)])]
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        temporary.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))
        temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}): name another file with --out") from None
    return len(shown)


def _not_there(directory: RunDirectory, seq: int) -> str:
    line = newest_line(directory)
    if line is not None and seq in line.dead:
        return f"sample {seq} was given up ({line.dead[seq]}): `reflux dead show {directory.root} {seq}` has what it was"
    why = "not applied yet, or its journal is gone (learner.record = true keeps it)"
    return f"sample {seq} is on no record in {directory.root}: {why}; `reflux status` says how far the run is"


def _lives(directory: RunDirectory, steps: Mapping[int, Mapping[str, Any]], seqs: Collection[int]) -> Iterator[Life]:
    """In order of training; a step that no line of metrics.jsonl tells of has no time."""
    for record in surviving_records(directory):
        if record.step not in steps:
            continue
        for index, seq in enumerate(record.seqs):
            if not seqs or seq in seqs:
                yield _life(record, index, steps)


def _life(record: StepRecord, index: int, steps: Mapping[int, Mapping[str, Any]]) -> Life:
    scored = decode(record.payloads[index], ScoredRollout)
    assert isinstance(scored, ScoredRollout)
    ticket, completion = scored.rollout.ticket, scored.rollout.completion
    entry, _, scorer = record.origins[index].partition(" ") if index < len(record.origins) else ("", "", "")
    milliseconds = entry.partition("-")[0]
    line, made = steps[record.step], steps.get(ticket.min_version.step)
    return Life(
        seq=ticket.seq,
        attempt=ticket.attempt,
        term=record.term,
        step=record.step,
        admitted_after=made["at"] if made else None,
        scored=int(milliseconds) / 1000 if milliseconds.isdecimal() else None,
        began=line["at"] - line.get("seconds", 0.0),
        applied=line["at"],
        entry=entry,
        scorer=scorer,
        min_version=ticket.min_version,
        versions=completion.versions,
        teachers=tuple(score.teacher for score in scored.scores),
        tokens=len(completion.response_ids),
        finish=completion.finish_reason,
        hops=scored.hops,
    )


def _worked(hops: Sequence[Hop]) -> Iterator[int]:
    for hop in hops:
        yield hop.began
        yield hop.done


def _in_order(read: Sequence[float]) -> list[float]:
    """None is later than the one behind it; the last stays."""
    return list(accumulate(reversed(read), min))[::-1]


def _names(lives: list[Life]) -> Iterator[dict[str, Any]]:
    for process, name in ((_SAMPLES, "samples"), (_LEARNER, "learner")):
        yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    for life in lives:
        yield {"ph": "M", "name": "thread_name", "pid": _SAMPLES, "tid": life.seq, "args": {"name": f"seq {life.seq}"}}


def _tracks(lives: list[Life]) -> Iterator[dict[str, Any]]:
    for life in lives:
        args = asdict(life)
        for name, begin, end, facts in life.spans():
            yield _span(name, begin, end, _SAMPLES, life.seq, args | facts)
            args = {}


def _steps(lines: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        yield _span(f"step {line['step']}", line["at"] - line.get("seconds", 0.0), line["at"], _LEARNER, 0, numbers)


def _span(name: str, begin: float, end: float, process: int, track: int, args: Mapping[str, Any]) -> dict[str, Any]:
    start, stop = round(begin * 1e6), round(end * 1e6)  # each rounded by itself, so that neighbours still touch
    return {"ph": "X", "cat": "reflux", "name": name, "ts": start, "dur": stop - start, "pid": process, "tid": track, "args": args}
