"""This process's own directory for versions that do not lie anywhere as whole files: downloaded, or rebuilt from deltas.

Guarantees: no two processes share one; the newest two finished versions stay (servers may still read the one before), older ones go; what
killed processes left behind is removed by the next one that starts: a lock that the kernel drops with its holder says who lives.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import secrets
import shutil
from pathlib import Path

_KEPT = 2
_LOCK = "lock"


class Workshop:
    """Nothing is made before the first `begin`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own: Path | None = None
        self._lock = -1  # held as long as the process lives
        self._finished: list[Path] = []

    def begin(self) -> Path:
        """A new, empty directory. Raises OSError."""
        if self._own is None:
            self._own = self._opened()
        begun = self._own / f"begun-{secrets.token_hex(4)}"
        begun.mkdir()
        return begun

    def finish(self, begun: Path, name: str) -> Path:
        """The directory under its name, instead of one that had it. Raises OSError."""
        assert self._own is not None
        path = self._own / name
        self.drop(path)
        begun.rename(path)
        self._finished.append(path)
        while len(self._finished) > _KEPT:
            self.drop(self._finished[0])
        return path

    def drop(self, path: Path) -> None:
        """Removes a directory if it is one of this process's."""
        if self.owns(path):
            self._finished = [kept for kept in self._finished if kept != path]
            shutil.rmtree(path, ignore_errors=True)

    def owns(self, path: Path) -> bool:
        """Whether it came from `begin` or `finish`."""
        return self._own is not None and path.parent == self._own

    def _opened(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        for path in self._root.glob("of-*"):
            _remove_if_left(path)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        new, own = self._root / f"new-{name}", self._root / f"of-{name}"
        new.mkdir()
        self._lock = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(own)  # nobody sees it before it is locked
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return own


def _remove_if_left(path: Path) -> None:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # gone
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
