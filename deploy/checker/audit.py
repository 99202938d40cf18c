"""The audit of one run: finished, stopped or under way. Reads only.

Order: the journal's tip, then the server, then checkpoints and journal. So whatever the server has settled is in the journal that is read,
and of what is journaled only the tip and later records can be unsettled. A run under way moves on meanwhile: red is looked at again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.checker.checkpoints import Listing, Version, read_checkpoints
from deploy.checker.ledger import check_result, check_server
from deploy.checker.line import Line, Violation, rebuild
from deploy.checker.records import last_step, term_directories
from deploy.checker.report import Report, history
from deploy.checker.server import Look, NoAnswer

_LOOKS = 4


def audit(root: Path, look: Callable[[], Look]) -> Report:
    """The run in the directory `root`. `look` raises NoAnswer where there is no server to be asked."""
    report = Report()
    max_staleness = int(json.loads((root / "config.json").read_bytes())["learner"]["max_staleness"])
    for _ in range(_LOOKS):
        try:
            report, moving = _audit(root, max_staleness, look)
        except FileNotFoundError:  # a checkpoint or segment that was deleted meanwhile
            continue
        if report.passed or not moving:
            return report
    return report if report.violation else Report(violation="the run's files change faster than they can be read")


def _audit(root: Path, max_staleness: int, look: Callable[[], Look]) -> tuple[Report, bool]:
    """The report, and whether a learner was at work."""
    journal, notes = root / "journal", list[str]()
    tip = _tip(journal)
    seen: Look | None = None
    try:
        seen = look()
    except NoAnswer as error:
        notes.append(f"the server was not asked ({error}): what is in flight is not seen")
    listings, damaged = read_checkpoints(root / "checkpoints")
    notes += [f"a checkpoint is damaged: {one}" for one in damaged]
    report = Report(notes=notes, live=None if seen is None else len(seen.live))
    if not listings:
        report.violation = "no checkpoint can be read: nothing can be proved"
        return report, bool(seen and seen.learner)
    try:
        line = rebuild(journal, listings, max_staleness=max_staleness, tip=tip)
        _fill(report, line)
        _check(root, line, seen, report)
    except Violation as violation:
        report.violation = str(violation)
        report.history = _history(journal, listings, seen, violation.seq)
    return report, bool(seen and seen.learner)


def _tip(journal: Path) -> Version:
    directories = term_directories(journal)
    tips = (Version(term, last_step(directory)) for term, directory in directories.items())
    return max(tips, default=Version(0, 0))


def _fill(report: Report, line: Line) -> None:
    report.steps, report.proved_steps, report.samples = line.step, line.records, len(line.counted)
    report.cursor, report.dead, report.lineage, report.ghosts = line.cursor, len(line.dead), line.lineage, line.ghosts
    report.staleness, report.masked_tokens = line.staleness, line.masked
    report.notes = [*report.notes, *line.notes]


def _check(root: Path, line: Line, seen: Look | None, report: Report) -> None:
    unreasoned = next((seq for seq, reason in line.dead.items() if not reason), None)
    if unreasoned is not None:
        raise Violation(f"seq {unreasoned} is dead without a reason", unreasoned)
    result = root / "result.json"
    finished = result.exists()
    if finished:
        check_result(line, json.loads(result.read_bytes()))
    if seen is not None:
        report.cursor, report.dead = max(line.cursor, seen.cursor), len(seen.dead)
        report.notes = [*report.notes, *check_server(line, seen, finished=finished)]
    elif not finished:
        unseen = sum(1 for seq in range(line.cursor) if not line.counted[seq] and seq not in line.dead)
        report.notes = [*report.notes, f"{unseen} samples were in flight when the run stopped"]


def _history(journal: Path, listings: Sequence[Listing], seen: Look | None, seq: int | None) -> Sequence[str]:
    return [] if seq is None else list(history(journal, listings, seen, seq))
