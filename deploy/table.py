"""What a person sees of a run: per role its state, tokens per second and backlog, then one line each for the student, the ledger and the
bottleneck. Everything is made from two snapshots; where there is no terminal the same becomes one plain line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.pulse import Report
from deploy.bottleneck import bottleneck
from deploy.snapshot import ROLES, Snapshot

_INPUT: Mapping[str, str] = {"producer": "tickets", "scorer": "rollouts", "learner": "scored"}


@dataclass(frozen=True, slots=True)
class RoleRow:
    """One role's workers together."""

    role: str
    workers: int
    state: str
    tokens_s: float
    cpu_share: float
    backlog: str


def role_rows(before: Snapshot, after: Snapshot) -> list[RoleRow]:
    """In the order of the stream."""
    return [_row(role, before, after) for role in ROLES]


def _row(role: str, before: Snapshot, after: Snapshot) -> RoleRow:
    reports = after.of(role)
    pairs = [(before.reports[report.name], report) for report in reports if report.name in before.reports]
    return RoleRow(
        role=role,
        workers=len(reports),
        state=_state(reports),
        tokens_s=sum(rate(old.counters.get("tokens", 0.0), new.counters.get("tokens", 0.0), old, new) for old, new in pairs),
        cpu_share=sum(rate(old.process_s, new.process_s, old, new) for old, new in pairs),
        backlog=f"{after.backlog(_INPUT[role])} {_INPUT[role]}",
    )


def rate(old: float, new: float, before: Report, after: Report) -> float:
    """Of something that a worker counts up, per second."""
    return max(0.0, new - old) / (after.at - before.at) if after.at > before.at else 0.0


def _state(reports: list[Report]) -> str:
    states = Counter(f"stopped: {said}" if (said := report.gauges.get("complaint")) else report.state for report in reports)
    if len(states) <= 1:
        return next(iter(states), "not there yet")
    return ", ".join(f"{count} × {state}" for state, count in states.most_common())


def student_line(after: Snapshot, steps: int) -> str:
    """Where the training is."""
    parts = [f"step {after.gauge('step') or 0} of {steps}"]
    for label, gauge, form in (("loss", "loss", ".4f"), ("KL to teacher", "kl", ".4f"), ("staleness", "staleness_mean", ".2f")):
        value = after.gauge(gauge)
        if isinstance(value, float | int):
            worst = after.gauge("staleness_max")
            parts.append(
                f"{label} {value:{form}}"
                + (f" (at most {worst:g})" if gauge == "staleness_mean" and isinstance(worst, int | float) else "")
            )
    accuracy = after.gauge("accuracy")
    if isinstance(accuracy, float | int):
        parts.append(f"pass@1 {accuracy:.1%} at step {after.gauge('accuracy_step')}")
    if version := after.gauge("evaluating"):
        step = str(version).rpartition(":")[2]
        parts.append(f"evaluating step {step}: {after.gauge('evaluated') or 0} of {after.gauge('evaluation_size') or '?'} answers")
    return " · ".join(parts)


def ledger_line(after: Snapshot) -> str:
    """cursor = live + applied + dead, and what was tried again."""
    if after.state is None:
        return "the Redis server does not answer"
    state = after.state
    text = f"admitted {state.cursor} = live {state.live} + applied {state.applied} + dead {state.dead}"
    retried = ", ".join(f"{reason} {count}" for reason, count in sorted(state.retried.items()))
    return f"{text} · retried: {retried}" if retried else text


def waits_line(before: Snapshot, after: Snapshot) -> str:
    """Who waits for whom."""
    found = bottleneck(before, after)
    return found.line if found else "; ".join(f"{role} {_state(after.of(role))}" for role in ROLES)


def complaints(after: Snapshot) -> tuple[str, ...]:
    """What keeps single workers from working."""
    each = sorted(after.reports.values(), key=lambda report: report.name)
    stopped = [f"{report.name} has stopped: {complaint}" for report in each if (complaint := report.gauges.get("complaint"))]
    return (*stopped, *(f"{report.name} waits: {obstacle}" for report in each if (obstacle := report.gauges.get("obstacle"))))


def live_view(name: str, steps: int, before: Snapshot, after: Snapshot, notes: tuple[str, ...] = ()) -> Group:
    """For a terminal."""
    table = Table(title=f"run {name}", title_justify="left", title_style="bold", expand=False)
    for column, justify in (
        ("role", "left"),
        ("workers", "right"),
        ("state", "left"),
        ("tokens/s", "right"),
        ("CPU", "right"),
        ("backlog", "right"),
    ):
        table.add_column(column, justify=justify, min_width=24 if column == "state" else None)  # type: ignore[arg-type]
    for row in role_rows(before, after):
        table.add_row(row.role, str(row.workers), row.state, f"{row.tokens_s:,.0f}", f"{row.cpu_share:.0%}", row.backlog)
    lines = [student_line(after, steps), ledger_line(after), waits_line(before, after), *complaints(after), *notes]
    return Group(table, *(Text(line) for line in lines))


def plain_line(steps: int, before: Snapshot, after: Snapshot) -> str:
    """For a log."""
    rates = ", ".join(f"{row.role} {row.tokens_s:,.0f} tokens/s" for row in role_rows(before, after))
    return " | ".join((student_line(after, steps), rates, ledger_line(after), waits_line(before, after), *complaints(after)))
