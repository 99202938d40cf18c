"""The records that made the surviving model, in order, as a resume would follow them.

Guarantee: of every term only the part that the newest valid checkpoint's lineage names; what a zombie wrote beside it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from common.messages import StepRecord
from learner import checkpoint, journal
from learner.checkpoint import Checkpoint
from learner.directory import RunDirectory
from learner.line import Line


def surviving_records(directory: RunDirectory, after: int = 0) -> Iterator[StepRecord]:
    """Records with step > `after` of the line that the newest checkpoint stands on, and those of its term after it."""
    found = checkpoint.newest(directory.checkpoints)
    if found is not None:
        yield from records_of(directory, found.line, after)


def records_of(directory: RunDirectory, line: Line, after: int = 0) -> Iterator[StepRecord]:
    """The same of a given line."""
    lineage = line.lineage
    for mine, following in zip(lineage, [*lineage[1:], None], strict=True):
        if following is None or following.step > max(after, mine.step):
            yield from journal.records(directory.journal, mine.term, max(after, mine.step), following.step if following else None)


def newest_line(directory: RunDirectory) -> Line | None:
    """For whoever only looks: the line of the newest checkpoint that can be read; its model's digests are not checked."""
    for version in reversed(checkpoint.versions(directory.checkpoints)):
        with suppress(OSError, ValueError, LookupError, TypeError):  # it goes away, or is damaged
            return checkpoint.read_line(directory.checkpoints, version)
    return None


def surviving_checkpoints(directory: RunDirectory) -> Iterator[Checkpoint]:
    """The valid checkpoints on that line, oldest first."""
    found = checkpoint.newest(directory.checkpoints)
    if found is None:
        return
    for version in checkpoint.versions(directory.checkpoints):
        try:
            kept = checkpoint.load(directory.checkpoints, version)
        except ValueError:
            continue
        if _leads_to(kept.line, found.line):
            yield kept


def _leads_to(earlier: Line, later: Line) -> bool:
    """Whether `later` went on from `earlier`: same terms, and the next of them began there or after."""
    following = later.lineage[len(earlier.lineage) :]
    same = list(later.lineage[: len(earlier.lineage)]) == list(earlier.lineage)
    return same and (not following or earlier.step <= following[0].step)
