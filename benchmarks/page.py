"""The figures as tables: for the terminal, and between the markers of docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any  # JSON values

from benchmarks.split import APART, MATHS

GOAL = 0.15
Found = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; all columns but the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rates(found: Found) -> str:
    """Tokens per CPU-second."""
    columns = ("ours", "floor", "matrices", "plain")
    rows = [[row["stage"], *(f"{row[name]:,}" for name in columns), f"{row['ratio']:.2f}"] for row in found["rates"]]
    return table(("tokens per CPU-second", "Reflux", "floor", "linear layers alone", "plain transformers", "ratio to plain"), rows)


def phases(found: Found) -> str:
    """CPU of the whole run."""
    spent = found["run"]["phases"]
    roles = sorted({role for row in spent.values() for role in row})
    total = sum(sum(row.values()) for row in spent.values())
    rows = [
        [phase, *(f"{row.get(role, 0.0):.2f}" for role in roles), f"{sum(row.values()):.2f}", f"{sum(row.values()) / total:.1%}"]
        for phase, row in spent.items()
    ]
    return table(("CPU seconds", *roles, "all", "share"), rows)


def stages(found: Found) -> str:
    """Training's CPU by role and stage, as shares of the role."""
    run = found["run"]
    lines = []
    for role, mine in run["stages"].items():
        order = [stage for stage in (*MATHS, *APART) if stage in mine]
        order += [*sorted(mine.keys() - {*order, "process", "samples", "rest"}, key=lambda stage: -mine[stage]), "rest"]
        text = " · ".join(f"{stage} {mine[stage] / mine['process']:.1%}" for stage in order)
        lines.append([role, f"{mine['process']:.2f}", text, f"{run['loop_share'].get(role, 0.0):.1%}"])
    return table(("role", "CPU s seen", "of which", "event loop's thread"), lines)


def overhead(found: Found) -> str:
    """What is not mathematics, against the goal."""
    run = found["run"]["overhead"]
    rows = [[role, *_seconds([row]), f"{row['overhead_s'] / run['counted_s']:.1%}"] for role, row in run["roles"].items()]
    rows.append(["all", *_seconds(run["roles"].values()), f"{run['share']:.1%} (goal ≤ {GOAL:.0%})"])
    return table(("training, CPU seconds", "all", "mathematics", "checkpoints", "overhead", "share of training"), rows)


def _seconds(rows: Collection[Found]) -> list[str]:
    return [f"{sum(row[name] for row in rows):.2f}" for name in ("cpu_s", "maths_s", "apart_s", "overhead_s")]


def hops(found: Found) -> str:
    """CPU per rollout."""
    rows = []
    for role, costs in found["run"]["per_rollout_us"].items():
        parts = " · ".join(f"{stage} {us:.0f}" for stage, us in sorted(costs.items(), key=lambda part: -part[1]))
        rows.append([role, f"{sum(costs.values()):.0f}", parts])
    return table(("in the run, CPU µs per rollout", "all", "of which"), rows)


def bus(found: Found) -> str:
    """The bus alone."""
    rows = [[row["hop"], row["tokens"], f"{row['client']:.0f}", f"{row['server']:.0f}"] for row in found["bus"]]
    return table(("the bus alone, CPU µs per sample", "response tokens", "client", "server"), rows)


def publish(found: Found) -> str:
    """Publication's latency."""
    got = found["run"]["publish"]
    rows = [[f"{got[name]:.0f}" if name in got else "–" for name in ("median_ms", "p90_ms", "versions", "steps")]]
    return table(("step done → first token: median ms", "p90 ms", "versions sampled with", "steps"), rows)


def setting(found: Found) -> str:
    """Where and how it was measured."""
    about = found["setting"]
    return (
        f"{about['date']}, {about['cpu']}, {about['cores']} cores, torch {about['torch']}; 1-minute load before: {about['load']}. "
        f"Rates: {about['rounds']} rounds. Run: {about['steps']} steps."
    )


SECTIONS = {
    "setting": (setting, ()),
    "rates": (rates, ("rates",)),
    "phases": (phases, ("run",)),
    "overhead": (overhead, ("run",)),
    "stages": (stages, ("run",)),
    "hops": (hops, ("run",)),
    "bus": (bus, ("bus",)),
    "publish": (publish, ("run",)),
}


def sections(found: Found) -> dict[str, str]:
    """Those whose figures are there."""
    return {name: make(found) for name, (make, needs) in SECTIONS.items() if all(need in found for need in needs)}


def write(file: Path, found: Found) -> None:
    """Puts every table between its markers `<!-- NAME -->` and `<!-- end -->`."""
    text = file.read_text()
    for name, body in sections(found).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(text), f"{file} has no place for {name}"
        text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)  # type: ignore[misc]
    file.write_text(text)
