"""Whose CPU time a step's is, where one stage follows another in one thread without a block of its own.

Guarantee: every second between the making of `Laps` and the last mark is given to exactly one stage.
"""

from __future__ import annotations

import time

from common.pulse import Pulse


class Laps:
    """One thread's watch."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._last = time.thread_time()

    def mark(self, stage: str) -> None:
        """What ran since the last mark was `stage`."""
        now = time.thread_time()
        self._pulse.spend(stage, now - self._last)
        self._last = now
