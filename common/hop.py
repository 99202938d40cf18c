"""A worker's part in a sample, written down when it is done, for whoever asks later how long the sample waited and for whom."""

from __future__ import annotations

import time

from common.bus.base import Lease
from common.messages import Hop


def now_ms() -> int:
    """Unix time by this host's clock."""
    return time.time_ns() // 1_000_000


def hop(worker: str, lease: Lease, began: int) -> Hop:
    """Done now. A stream's entry is named after the server's clock."""
    milliseconds = lease.entry.partition("-")[0]
    return Hop(worker, int(milliseconds) if milliseconds.isdecimal() else 0, began, now_ms())
