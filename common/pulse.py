"""What one worker process does, measured where it happens: the heartbeat, the Prometheus endpoint and the bottleneck line all read it.

Seconds are cumulative, so that any reader makes rates from two readings. `waiting` counts wall time by cause, `cpu` counts the calling
thread's CPU time by stage. Safe to use from several threads.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Self

Gauge = float | int | str


@dataclass(frozen=True, slots=True)
class Report:
    """One worker's heartbeat."""

    role: str
    name: str
    pid: int = 0
    host: str = ""
    at: float = 0.0  # unix seconds
    started: float = 0.0
    state: str = "starting"
    process_s: float = 0.0  # CPU seconds of the process
    waiting: dict[str, float] = field(default_factory=dict)  # cause -> wall seconds
    cpu: dict[str, float] = field(default_factory=dict)  # stage -> CPU seconds
    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, Gauge] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """From JSON; unknown keys of a newer version are left out."""
        values = json.loads(raw)
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})


class Pulse:
    """Counts what one process does."""

    def __init__(self, role: str = "worker", name: str = "") -> None:
        self.role = role
        self.name = name
        self._lock = threading.Lock()
        self._started = time.time()
        self._state = "starting"
        self._open: dict[int, tuple[str, float, str]] = {}  # waits that have not ended yet: cause, since, why
        self._next = 0
        self._waiting: dict[str, float] = defaultdict(float)
        self._cpu: dict[str, float] = defaultdict(float)
        self._counters: dict[str, float] = defaultdict(float)
        self._gauges: dict[str, Gauge] = {}

    @contextmanager
    def waiting(self, cause: str, why: str = "") -> Iterator[None]:
        """Wall time spent here is time lost to `cause`; while it lasts the worker's state says so. `why`: what others must mend."""
        with self._lock:
            token = self._next = self._next + 1
            self._open[token] = (cause, time.monotonic(), why)
        try:
            yield
        finally:
            with self._lock:
                _, since, _ = self._open.pop(token)
                self._waiting[cause] += time.monotonic() - since

    def lose(self, cause: str, seconds: float) -> None:
        """Wall time lost to `cause`, measured by the caller."""
        with self._lock:
            self._waiting[cause] += seconds

    @contextmanager
    def cpu(self, stage: str) -> Iterator[None]:
        """The calling thread's CPU time spent here belongs to `stage`. Do not nest."""
        begin = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - begin
            with self._lock:
                self._cpu[stage] += spent

    def spend(self, stage: str, seconds: float) -> None:
        """CPU seconds measured by the caller."""
        with self._lock:
            self._cpu[stage] += seconds

    def add(self, **counts: float) -> None:
        """Raises counters."""
        with self._lock:
            for name, count in counts.items():
                self._counters[name] += count

    def set(self, **values: Gauge) -> None:
        """Sets gauges; text is allowed."""
        with self._lock:
            self._gauges.update(values)

    def state(self, text: str) -> None:
        """What the worker does when it waits for nothing."""
        self._state = text

    def report(self) -> Report:
        """A consistent copy."""
        now = time.monotonic()
        with self._lock:
            waiting = defaultdict(float, self._waiting)
            for cause, since, _ in self._open.values():
                waiting[cause] += now - since
            obstacle = next((why for _, _, why in self._open.values() if why), "")
            waits = [cause for cause, _, why in self._open.values() if why or not obstacle]
            return Report(
                role=self.role,
                name=self.name,
                pid=os.getpid(),
                host=socket.gethostname(),
                at=time.time(),
                started=self._started,
                state=f"waits for {waits[0]}" if waits else self._state,
                process_s=time.process_time(),
                waiting=dict(waiting),
                cpu=dict(self._cpu),
                counters=dict(self._counters),
                gauges=self._gauges | ({"obstacle": obstacle} if obstacle else {}),
            )
