"""What the page shows of a run that lives, made from two snapshots by the functions that make the
terminal's table: nothing is computed twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any  # JSON values

from common.bus.base import EVAL, EVALUATED
from common.pulse import Report
from deploy.bottleneck import bottleneck
from deploy.snapshot import ROLES, Snapshot
from deploy.table import complaints, ledger_line, rate, role_rows

_REMEMBERED = 120
_LEARNER_SAYS = (
    "step", "term", "kl", "loss", "staleness_mean", "staleness_max", "accuracy", "accuracy_step", "evaluating", "evaluated",
    "evaluation_size", "published",
)  # fmt: skip


class Look:
    """Takes snapshots in turn; `document` is the newest for the page, None before the first."""

    def __init__(self) -> None:
        self.document: dict[str, Any] | None = None
        self._heard: dict[str, tuple[float, float]] = {}  # worker -> its clock at the last report, ours when that came
        self._history: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)

    def show(self, before: Snapshot, after: Snapshot) -> None:
        """A Watch calls it."""
        self._listen(after)
        found = bottleneck(before, after)
        roles = [
            {"role": row.role, "workers": row.workers, "state": row.state, "tokens_s": row.tokens_s, "cpu": row.cpu_share}
            | {"samples_s": _samples_s(before, after, row.role)}
            for row in role_rows(before, after)
        ]
        queues = _queues(after)
        self._history.append({"tokens_s": [row["tokens_s"] for row in roles], "backlog": [queue["backlog"] for queue in queues]})
        self.document = {
            "answers": after.state is not None,
            "ledger": _ledger(after),
            "ledger_line": ledger_line(after),
            "roles": roles,
            "queues": queues,
            "bottleneck": {"place": found.place, "line": found.line} if found else None,
            "complaints": list(complaints(after)),
            "learner": {name: value for name in _LEARNER_SAYS if (value := after.gauge(name)) is not None},
            "workers": [self._worker(before, report) for role in ROLES for report in after.of(role)],
            "history": list(self._history),
        }

    def _listen(self, after: Snapshot) -> None:
        """Hosts' clocks may differ: a heartbeat's age is the time since it changed, on ours."""
        now, heard = time.monotonic(), self._heard
        self._heard = {
            name: heard[name] if name in heard and heard[name][0] == report.at else (report.at, now)
            for name, report in after.reports.items()
        }

    def _worker(self, before: Snapshot, report: Report) -> dict[str, Any]:
        old = before.reports.get(report.name, report)
        return {
            "name": report.name,
            "role": report.role,
            "host": report.host,
            "pid": report.pid,
            "state": report.gauges.get("complaint") or report.gauges.get("obstacle") or report.state,
            "well": not (report.gauges.get("complaint") or report.gauges.get("obstacle")),
            "version": _version(report),
            "teacher": report.gauges.get("teacher"),
            "tokens_s": rate(old.counters.get("tokens", 0.0), report.counters.get("tokens", 0.0), old, report),
            "samples": report.counters.get("samples", 0),
            "cpu": rate(old.process_s, report.process_s, old, report),
            "heard_s": time.monotonic() - self._heard[report.name][1],
            "age_s": max(0.0, report.at - report.started),
        }


def _version(report: Report) -> list[Any] | None:
    """(term, step) of the weights that it works with."""
    if report.role == "scorer" or "step" not in report.gauges:
        return None
    return [report.gauges.get("term"), report.gauges["step"]]


def _samples_s(before: Snapshot, after: Snapshot, role: str) -> float:
    pairs = [(before.reports[report.name], report) for report in after.of(role) if report.name in before.reports]
    return sum(rate(old.counters.get("samples", 0.0), new.counters.get("samples", 0.0), old, new) for old, new in pairs)


def _ledger(after: Snapshot) -> Mapping[str, Any] | None:
    state = after.state
    if state is None:
        return None
    return {
        "admitted": state.cursor,
        "live": state.live,
        "applied": state.applied,
        "dead": state.dead,
        "retried": dict(state.retried),
        "used_bytes": state.used_bytes,
    }


def _queues(after: Snapshot) -> list[dict[str, Any]]:
    """In the order of the stream."""
    state = after.state
    if state is None:
        return []
    order = {"tickets": 0, "rollouts": 1, "scored": 2}
    topics = sorted(
        {"tickets", "scored", *state.backlog} - {EVAL, EVALUATED}, key=lambda topic: (order.get(topic.partition(":")[0], 9), topic)
    )
    return [
        {
            "topic": topic,
            "backlog": state.backlog.get(topic, 0),
            "leased": state.leased.get(topic, 0),
            "oldest_s": state.oldest_s.get(topic, 0.0),
        }
        for topic in topics
    ]
