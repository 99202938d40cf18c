"""Who joins when. A newcomer's prefill costs about as much as a decode step, so newcomers join together.

The bound: from the step at which a slot is free and a request waits, it joins within PATIENCE steps, whatever else runs. It joins at once
when `refill_share` of the slots can be filled together, or when nothing else runs.
"""

from __future__ import annotations

import math
from collections import deque

from producers.engines.torch.request import Request

PATIENCE = 16


class Scheduler:
    """A queue, first come, first served."""

    def __init__(self, *, slots: int, refill_share: float) -> None:
        self.chunk = max(1, math.ceil(refill_share * slots))
        self._queue: deque[Request] = deque()
        self._waited = 0  # steps since somebody could have joined

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, request: Request) -> None:
        """At the end of the queue."""
        self._queue.append(request)

    def drop(self, request: Request) -> bool:
        """Whether it was still waiting."""
        if request not in self._queue:
            return False
        self._queue.remove(request)
        return True

    def newcomers(self, *, free: int, active: int) -> list[Request]:
        """Asked once before every decode step: those who join now."""
        count = min(free, len(self._queue))
        if count == 0:
            self._waited = 0
            return []
        if active and count < self.chunk and self._waited < PATIENCE:
            self._waited += 1
            return []
        self._waited = 0
        return [self._queue.popleft() for _ in range(count)]
