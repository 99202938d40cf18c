"""Durable files: what these functions return from is on the disk and stays there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


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
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    sync_file(temporary)
    temporary.replace(path)
    sync_directory(path.parent)


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
