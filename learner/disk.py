"""Durable files: what these functions return from is on the disk and stays there; what lacked room is DiskFull, and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import DiskFull
from common.patience import until_mended
from common.pulse import Pulse

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NEARLY_NOTHING = 256 << 10
"""Writers in other languages say only that a write failed: with no more room than this, that is why."""


@contextmanager
def needs_room(directory: Path, what: str) -> Iterator[None]:
    """A failure inside for lack of room on the disk of `directory` becomes DiskFull."""
    try:
        yield
    except Exception as error:
        if not _lacks_room(error, directory):
            raise
        raise DiskFull(f"cannot write {what} below {directory}: the disk is full: make room, and the run goes on by itself") from error


async def once_there_is_room(pulse: Pulse, write: Callable[[], None]) -> None:
    """Writes off the event loop, however long the disk is full."""
    await until_mended(pulse, "disk", lambda: asyncio.to_thread(write), DiskFull)


def _lacks_room(error: BaseException, directory: Path) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_ROOM
    there = os.statvfs(directory)
    return there.f_bavail * there.f_frsize < _NEARLY_NOTHING


def sync_directory(directory: Path) -> None:
    """Makes renames and new names in it durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes its bytes durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, content: str | bytes) -> None:
    """All or nothing: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with needs_room(path.parent, path.name):
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            sync_file(temporary)
            temporary.replace(path)
            sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append_durably(path: Path, line: str) -> None:
    """The whole line or nothing of it."""
    with path.open("ab") as file, needs_room(path.parent, path.name):
        before = file.tell()
        try:
            file.write(line.encode())
            file.flush()
            os.fdatasync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise


def end_torn_line(path: Path) -> None:
    """What a crash cut off stays a line by itself: the next one appended begins anew."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def term_number(path: Path) -> int:
    """Of a directory named term000012."""
    return int(path.name.removeprefix("term"))
