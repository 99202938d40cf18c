"""The learner's write-ahead log: a step's record is durable before anybody else hears of the step.

Guarantees: `append` returns after fsync; frames carry length and CRC, so that what is torn or damaged is named in a warning and never
believed; a term writes only below its own directory; reading gives one term's records contiguous in step or stops.
Layout: journal/term000001/segment-00000001.rfx, named by the first step in it; a frame is `length u32 | crc32 u32 | encoded StepRecord`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from common.codec import decode, encode
from common.errors import OtherSchema, WireError
from common.messages import StepRecord, Version
from common.pulse import Pulse
from learner.disk import needs_room, sync_directory, term_number

SEGMENT_BYTES = 64 << 20

_FRAME = struct.Struct("<II")
_log = logging.getLogger(__name__)


class Journal:
    """One term's log, open for appending. Used by one task at a time."""

    def __init__(self, root: Path, term: int, *, segment_bytes: int = SEGMENT_BYTES, pulse: Pulse | None = None) -> None:
        self._directory = term_directory(root, term)
        self._segment_bytes = segment_bytes
        self._pulse = pulse or Pulse()
        self._file: int | None = None
        self._written = 0
        self._rotate = False
        self._lock = threading.Lock()  # a cancelled `append` still writes in its thread

    def rotate(self) -> None:
        """The next record begins a new segment, so that the ones before can be deleted."""
        self._rotate = True

    async def append(self, record: StepRecord) -> None:
        """Durable when it returns. Raises DiskFull, and nothing of the record is there."""
        await asyncio.to_thread(self._append, record)

    def _append(self, record: StepRecord) -> None:
        with self._pulse.cpu("journal"), self._lock, needs_room(self._directory.parent.parent, "the journal"):
            self._write(record.step, encode(record))

    def _write(self, step: int, body: bytes) -> None:
        if self._file is None or self._rotate or self._written >= self._segment_bytes:
            self._open(step)
        assert self._file is not None
        frame = memoryview(_FRAME.pack(len(body), zlib.crc32(body)) + body)
        size = len(frame)
        try:
            while frame:
                frame = frame[os.write(self._file, frame) :]
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._written)  # half a frame would end the reading of all that follow
            raise
        self._written += size

    def _open(self, first_step: int) -> None:
        self._shut()
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"segment-{first_step:08}.rfx"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._written = 0
        self._rotate = False
        try:
            for directory in (self._directory, self._directory.parent, self._directory.parent.parent):
                sync_directory(directory)
        except OSError:  # a file without a durable name
            self._shut()
            path.unlink()
            raise

    def close(self) -> None:
        """Frees the file; everything appended is durable already."""
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def term_directory(root: Path, term: int) -> Path:
    """Where a term's segments lie."""
    return root / f"term{term:06}"


def terms(root: Path) -> list[int]:
    """Terms that have a journal, lowest first."""
    return sorted(term_number(path) for path in root.glob("term*"))


def records(root: Path, term: int, after: int = 0, until: int | None = None) -> Iterator[StepRecord]:
    """The term's records with after < step ≤ until, contiguous in step from after + 1 on; a torn tail or a gap ends it with a warning."""
    expected = after + 1
    for segment in _segments(root, term, after):
        for record in _frames(segment):
            if until is not None and record.step > until:
                return
            if record.step < expected:
                continue
            if record.step > expected or record.term != term:
                _log.warning("journal: a gap ends the reading", extra={"segment": str(segment), "step": record.step, "expected": expected})
                return
            yield record
            expected += 1


def first_step(root: Path, term: int) -> int:
    """The step that the term's oldest segment begins with; 1 where there is none."""
    return min((_first_step(path) for path in term_directory(root, term).glob("segment-*.rfx")), default=1)


def _first_step(segment: Path) -> int:
    return int(segment.stem.removeprefix("segment-"))


def _segments(root: Path, term: int, after: int) -> list[Path]:
    """The segments that can hold steps above `after`."""
    paths = sorted(term_directory(root, term).glob("segment-*.rfx"), key=_first_step)
    begun = [index for index, path in enumerate(paths) if _first_step(path) <= after + 1]
    return paths[begun[-1] if begun else 0 :]


def _frames(segment: Path) -> Iterator[StepRecord]:
    """What is damaged is passed over: where its step is needed, the gap ends the reading."""
    size = segment.stat().st_size
    with segment.open("rb") as file:
        while prefix := file.read(_FRAME.size):
            where = {"segment": str(segment), "at": file.tell() - len(prefix)}
            length, crc = _FRAME.unpack(prefix) if len(prefix) == _FRAME.size else (0, 0)
            if not length or file.tell() + length > size:
                _log.warning("journal: a torn frame ends the reading", extra=where)
                return
            body = file.read(length)
            if zlib.crc32(body) != crc:
                _log.warning("journal: a damaged frame is passed over", extra=where)
                continue
            try:
                record = decode(body, StepRecord)
            except OtherSchema as error:
                raise OtherSchema(f"{segment} holds {error}, the one that wrote it") from None
            except WireError as error:
                _log.warning("journal: an unreadable frame ends the reading", extra={"segment": str(segment), "error": str(error)})
                return
            assert isinstance(record, StepRecord)
            yield record


def trim(root: Path, oldest: Version, up_to_term: int) -> None:
    """Deletes segments of terms ≤ `up_to_term` whose records all lie before the checkpoint `oldest`."""
    for term in terms(root):
        if term > up_to_term:
            continue
        paths = sorted(term_directory(root, term).glob("segment-*.rfx"), key=_first_step)
        for path, following in zip_longest(paths, paths[1:]):
            ended = term < oldest.term if following is None else Version(term, _first_step(following) - 1) <= oldest
            if ended:
                path.unlink()
