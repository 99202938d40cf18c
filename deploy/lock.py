"""One `reflux run` per run and machine: a lock that the kernel frees however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError, UserError


def lock_file(directory: Path) -> Path:
    """Beside the run's directory, which may be moved."""
    return directory.parent / f".{directory.name}.lock"


@contextmanager
def only_supervisor(directory: Path) -> Iterator[None]:
    """Raises UserError while another process holds the run, ConfigError where nothing can be written."""
    file = lock_file(directory)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write {file.parent} ({error.strerror}): set run.dir to a directory you can write") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 20, 0).decode() or "?"
            raise UserError(
                f"the run {directory.name} is running already (process {holder}): `reflux status {directory}` shows it"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def is_held(directory: Path) -> bool:
    """Whether a supervisor lives."""
    try:
        handle = os.open(lock_file(directory), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
