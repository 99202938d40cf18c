"""A plan for a person, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any  # JSON values

from rich.console import Console
from rich.table import Table

from common.config import RunConfig
from deploy.plan.choose import GOAL, Plan
from deploy.plan.simulate import Outcome

_HEADINGS = ("", "producers", "scorers", "busy: learner", "producers", "scorers", "samples/s", "tokens/s", "staleness", "beyond S", "Redis")
_FULL = 0.9
_UNITS = ("B", "kB", "MB", "GB", "TB")


def show(console: Console, config: RunConfig, plan: Plan) -> None:
    """The table, and what follows from it."""
    table = Table(title=f"plan for {config.run.name}", title_justify="left", title_style="bold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading else "left")
    for row in plan.rows:
        table.add_row(_mark(plan, row), *_cells(row), style="bold" if row is plan.best else "")
    console.print(table)
    for sentence in sentences(config, plan):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _cells(row: Outcome) -> Iterator[str]:
    yield f"{row.layout.producers}"
    yield f"{row.layout.scorers}"
    for share in (row.learner_busy, row.producer_busy, row.scorer_busy):
        yield f"{share:.0%}"
    yield _number(row.samples_per_s)
    yield _number(row.tokens_per_s)
    yield f"{mean_staleness(row):.1f}, ≤ {max(row.staleness, default=0)}"
    yield f"{row.straggling:.1%}"
    yield _bytes(row.bytes_peak)


def _mark(plan: Plan, row: Outcome) -> str:
    return " ".join((["take"] if row is plan.best else []) + (["now"] if row is plan.now else []))


def sentences(config: RunConfig, plan: Plan) -> Iterator[str]:
    """The recommendation, what it leaves open, and what the figures are."""
    best = plan.best
    yield f"take {_keys(config, plan)}: the learner is busy {best.learner_busy:.0%} of the time, {_number(best.samples_per_s)} samples/s"
    if not plan.reached:
        most = f"{plan.ceiling:.0%} at best; this is the smallest within 5 % of that"
        yield f"no layout keeps it {GOAL:.0%} busy ({most}): {_why(config, plan)}"
    shares = " · ".join(f"{lag}: {share:.1%}" for lag, share in best.staleness.items())
    yield f"staleness of trained tokens there: {shares}; {best.mixed:.0%} of the answers are sampled by more than one version"
    yield f"Redis there: {_bytes(best.bus_bytes_per_s)}/s in and out, {_bytes(best.bytes_peak)} of messages held at most"
    versions = f"{best.versions_per_s:.3g} versions a second, {_bytes(plan.version_bytes)} each"
    yield f"weights there: {_bytes(best.weight_bytes_per_s)}/s to the producers together ({versions})"


def _keys(config: RunConfig, plan: Plan) -> str:
    layout, teacher = plan.best.layout, next(iter(config.teachers.values()))
    sampling = f"{layout.producers} in producer.urls" if config.producer.kind == "sglang" else f"producer.count = {layout.producers}"
    scoring = f"{layout.scorers} in urls of each teacher" if teacher.kind == "sglang" else f"scorer.count = {layout.scorers}"
    return f"{sampling} and {scoring}"


def _why(config: RunConfig, plan: Plan) -> str:
    if plan.best.cores_busy > _FULL:
        return f"{plan.rates.cores} shared cores are {plan.best.cores_busy:.0%} busy, more workers only divide them"
    if config.learner.max_staleness == 0:
        return "at learner.max_staleness = 0 it waits for sampling and scoring after every step; 1 lets them overlap"
    slots = config.producer.slots * config.producer.count
    if config.producer.kind == "sglang" and slots < config.window:
        return f"producer.slots lets {slots} answers be sampled at once, the window has {config.window}: raise it, where memory allows"
    return (
        f"what is in flight, (S + 1) · batch = {config.window}, is used up while the longest answers are sampled; raise "
        "learner.max_staleness or learner.batch_size"
    )


def mean_staleness(row: Outcome) -> float:
    """Steps, over the trained tokens."""
    return sum(lag * share for lag, share in row.staleness.items())


def to_json(plan: Plan) -> str:
    """Everything, with the rates that were used."""
    rates = plan.rates.model_dump(mode="json", exclude={"answers": {"lengths"}})
    values: Mapping[str, Any] = {
        "goal": GOAL,
        "reached": plan.reached,
        "ceiling": plan.ceiling,
        "recommended": asdict(plan.best.layout),
        "configured": asdict(plan.now.layout),
        "version_bytes": plan.version_bytes,
        "rows": [asdict(row) | {"straggling": row.straggling, "mean_staleness": mean_staleness(row)} for row in plan.rows],
        "rates": rates,
    }
    return json.dumps(values, indent=1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {_UNITS[-1]}"
