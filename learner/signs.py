"""Rank 0's signs of life to the ranks that wait for its next command, which may be long in coming.

Guarantees: a rank that has had no sign for learner.rank_timeout_s ends its process with a sentence, also where no connection breaks
(a power cut, a stopped process); while rank 0 lives, whatever it waits for or computes, signs come: they have a group and threads of
their own.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

import torch
import torch.distributed as dist

from common.service import EXIT_FAILED

_WITHIN_TIMEOUT = 6
_GOODBYE_S = 5.0


class Signs:
    """Rank 0's; sent until `close`."""

    def __init__(self, group: dist.ProcessGroup, timeout_s: float) -> None:
        self._group = group
        self._every_s = timeout_s / _WITHIN_TIMEOUT
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send, name="signs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The last one says that no other follows."""
        self._closed.set()
        self._thread.join(_GOODBYE_S)

    def _send(self) -> None:
        with suppress(RuntimeError):  # a rank is gone: whoever needs it says so
            while not self._closed.wait(self._every_s):
                dist.broadcast(torch.ones(1), 0, group=self._group)
            dist.broadcast(torch.zeros(1), 0, group=self._group)


class Heed:
    """A rank's that waits; `group` has the timeout."""

    def __init__(self, group: dist.ProcessGroup, timeout_s: float) -> None:
        self._group = group
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._receive, name="signs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After the last one."""
        self._thread.join(_GOODBYE_S)

    def _receive(self) -> None:
        sign = torch.ones(1)
        try:
            while sign.item():
                dist.broadcast(sign, 0, group=self._group)
        except RuntimeError as error:
            if "timed out" not in str(error).lower():  # a broken connection is found where commands are awaited, too
                return
            sys.stderr.write(
                f"reflux learner, rank {os.environ['RANK']}: no sign of rank 0 for {self._timeout_s:g} s (learner.rank_timeout_s): "
                "its machine is gone or its process stands still: start the learner again, it resumes\n"
            )
            sys.stderr.flush()
            os._exit(EXIT_FAILED)
