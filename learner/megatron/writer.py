"""The thread that writes a rank's checkpoints while the model trains on.

Guarantees: one write at a time; what the ranks tell each other for it goes over a group of its own, so that it never meets what training
says; a failure comes out where the write is waited for.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch.distributed as dist

from common.pulse import Pulse
from learner.megatron.checkpoint import Snapshot


class Writer:
    """Every rank has one, and gives it the same work in the same order."""

    def __init__(self, *, timeout_s: float, pulse: Pulse) -> None:
        alone = dist.get_world_size() == 1 and dist.get_backend() == "gloo"  # then there is nobody to tell, and a group costs threads
        group = dist.group.WORLD if alone else dist.new_group(backend="gloo", timeout=dt.timedelta(seconds=timeout_s))
        assert group is not None
        self._group: dist.ProcessGroup = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pulse = pulse
        self._last: Future[None] | None = None

    def write(self, snapshot: Snapshot, directory: Path) -> Callable[[], None]:
        """Begins; the call that it returns waits until all ranks have written, and raises what went wrong."""
        self.wait()
        self._last = self._thread.submit(self._write, snapshot, directory)
        return self._last.result

    def _write(self, snapshot: Snapshot, directory: Path) -> None:
        with self._pulse.cpu("checkpoint"):
            snapshot.write(directory, self._group)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._last is not None:
            wait([self._last])

    def close(self) -> None:
        """Waits, and ends the thread."""
        self._thread.shutdown()
