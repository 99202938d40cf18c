"""One look at a run: every worker's report and the bus's state, taken together. Rates come from two of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from common.bus.base import Bus, BusState
from common.pulse import Gauge, Report

ROLES = ("producer", "scorer", "learner")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`state` is None where the server did not answer."""

    at: float  # seconds on any one clock
    reports: Mapping[str, Report] = field(default_factory=dict)  # worker's name -> report
    state: BusState | None = None
    answer_s: float = 0.0  # how long the server took to answer

    def of(self, role: str) -> list[Report]:
        """Reports of one role, oldest worker first."""
        return sorted((report for report in self.reports.values() if report.role == role), key=lambda report: (report.started, report.name))

    def gauge(self, name: str) -> Gauge | None:
        """The learner's last word on something."""
        return next((report.gauges[name] for report in reversed(self.of("learner")) if name in report.gauges), None)

    def backlog(self, topic: str) -> int:
        """Entries in a topic; `rollouts` means those of all teachers."""
        return _sum_of(self.state.backlog, topic) if self.state else 0


def _sum_of(counts: Mapping[str, int], topic: str) -> int:
    return sum(count for name, count in counts.items() if name == topic or name.startswith(f"{topic}:"))


async def take(bus: Bus) -> Snapshot:
    """Asks the bus; raises BusError."""
    began = time.monotonic()
    raw, state = await asyncio.gather(bus.reports(), bus.state())
    now = time.monotonic()
    return Snapshot(now, _decoded(raw.items()), state, now - began)


def _decoded(raw: Iterable[tuple[str, bytes]]) -> dict[str, Report]:
    return {name: Report.decode(report) for name, report in raw}
