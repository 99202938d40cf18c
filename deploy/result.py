"""The outcome of a run as `result.json` has it, the table a person reads, and what this machine spent on it.

The learner writes result.json when it is done; the supervisor alone knows what every process cost, over all the times the run was started
(usage.json), and adds `cpu_s` by role and `wall_s`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values

from rich.console import RenderableType
from rich.table import Table

from deploy.supervisor import Ending
from learner.directory import RunDirectory
from learner.disk import write_durably


@dataclass(frozen=True, slots=True)
class Result:
    """`values` is result.json, empty until the run is finished."""

    directory: Path
    how: Ending
    values: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.how == "finished"

    @property
    def model(self) -> Path:
        """The trained student."""
        return RunDirectory(self.directory).model


@dataclass(frozen=True, slots=True)
class Usage:
    """Wall and CPU seconds over all starts of a run on this machine."""

    wall_s: float
    cpu_s: Mapping[str, float]

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        roles = {*self.cpu_s, *other.cpu_s}
        return Usage(self.wall_s + other.wall_s, {role: self.cpu_s.get(role, 0.0) + other.cpu_s.get(role, 0.0) for role in sorted(roles)})


def add_usage(directory: RunDirectory, spent: Usage) -> Usage:
    """Adds what this start has cost; returns the total."""
    file = directory.root / "usage.json"
    before = Usage(**json.loads(file.read_text())) if file.exists() else Usage(0.0, {})
    total = before.plus(spent)
    write_durably(file, json.dumps({"wall_s": round(total.wall_s, 3), "cpu_s": {role: round(s, 3) for role, s in total.cpu_s.items()}}))
    return total


def complete_result(directory: RunDirectory, total: Usage) -> dict[str, Any]:
    """Puts the supervisor's figures into the learner's result.json."""
    values = directory.finished()
    assert values is not None
    values["wall_s"] = round(total.wall_s, 3)
    values["cpu_s"] = {role: round(seconds, 3) for role, seconds in total.cpu_s.items()}
    write_durably(directory.result, json.dumps(values, indent=1))
    return values


def result_table(directory: RunDirectory, values: Mapping[str, Any]) -> RenderableType:
    """For people."""
    table = Table(title="result", title_justify="left", title_style="bold", show_header=False)
    for label, text in _rows(values):
        table.add_row(label, text)
    table.add_row("trained model", str(directory.model))
    table.add_row("record", str(directory.root))
    return table


def _rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    passed = values.get("pass_at_1") or {}
    if passed.get("after") is not None:
        yield "pass@1", f"{_percent(passed.get('before'))} → {_percent(passed['after'])} on {passed.get('n')} held-out prompts"
    yield "steps", f"{values.get('steps', 0):,}"
    yield "samples", f"{values.get('samples', 0):,}"
    yield "tokens", f"{values.get('tokens', 0):,}"
    yield "wall seconds", f"{values.get('wall_s', 0.0):.1f}"
    cpu = values.get("cpu_s") or {}
    yield "CPU seconds", " · ".join(f"{role} {seconds:.1f}" for role, seconds in cpu.items()) + f" · together {sum(cpu.values()):.1f}"
    staleness = values.get("staleness") or {}
    total = sum(staleness.get("histogram", {}).values()) or 1
    bars = " · ".join(f"{lag}: {count / total:.1%}" for lag, count in staleness.get("histogram", {}).items())
    yield "staleness of trained tokens", f"{bars} (at most {staleness.get('max', 0)} steps)"
    yield "mixed-version rollouts", f"{values.get('mixed_version_share', 0.0):.1%}"
    ledger = values.get("ledger") or {}
    yield "ledger", _ledger(ledger)
    if values.get("replayed_steps"):
        yield "replayed after restarts", f"{values['replayed_steps']:,} steps in {values.get('replay_s', 0.0):.1f} s"
    retried = values.get("retried") or {}
    if retried:
        yield "tried again", " · ".join(f"{reason}: {count}" for reason, count in retried.items())


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.1%}"


def _ledger(ledger: Mapping[str, int]) -> str:
    admitted, parts = ledger.get("admitted", 0), {name: ledger.get(name, 0) for name in ("applied", "live", "dead")}
    verdict = "balanced" if admitted == sum(parts.values()) else "NOT BALANCED"
    return f"admitted {admitted:,} = " + " + ".join(f"{name} {count:,}" for name, count in parts.items()) + f": {verdict}"
