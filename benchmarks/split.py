"""From what was observed of a run to its tables: CPU by phase, training's CPU by role and stage, CPU per rollout, publication's latency.

Pure arithmetic. Overhead is the CPU of training outside the mathematics (forward, backward, optimizer, prefill, decode); start-up,
evaluation, checkpoints and the end of a run are rows of their own and not in it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any  # JSON values

from benchmarks.observed_run import TRAINING, Look, Observed
from common.pulse import Report

MATHS = ("forward", "backward", "optimizer", "prefill", "decode")
APART = ("checkpoint", "startup")
"""In nobody's overhead, and not mathematics either: rows of their own."""
_FIRST_TOKEN = re.compile(r"samples with new weights  term=(\d+) step=(\d+) at=([\d.]+)")

Seconds = dict[str, float]


def by_phase(looks: Sequence[Look]) -> dict[str, Seconds]:
    """phase -> role -> CPU seconds. What passes between two looks belongs to the phase of the first."""
    spent: dict[str, Seconds] = {}
    for before, after in pairwise(looks):
        row = spent.setdefault(before.phase, defaultdict(float))
        for role, seconds in after.process_s.items():
            row[role] += seconds - before.process_s.get(role, 0.0)
    return {phase: dict(row) for phase, row in spent.items()}


def window(reports: Sequence[Report], looks: Sequence[Look]) -> dict[str, tuple[Report, Report]]:
    """Of every worker, the first and the last report of training."""
    times = [look.at for look in looks if look.phase == TRAINING]
    found: dict[str, list[Report]] = defaultdict(list)
    for report in sorted(reports, key=lambda report: report.at):
        if times and times[0] <= report.at <= times[-1]:
            found[report.name].append(report)
    return {name: (mine[0], mine[-1]) for name, mine in found.items() if len(mine) > 1}


def by_stage(ends: Mapping[str, tuple[Report, Report]]) -> dict[str, Seconds]:
    """role -> stage -> CPU seconds between the two reports; `process` is all, `rest` what no stage claims, `samples` a count."""
    roles: dict[str, Seconds] = {}
    for first, last in ends.values():
        row = roles.setdefault(first.role, defaultdict(float))
        process = last.process_s - first.process_s
        stages = {stage: seconds - first.cpu.get(stage, 0.0) for stage, seconds in last.cpu.items()}
        for stage, seconds in stages.items():
            if seconds > 0:
                row[stage] += seconds
        row["process"] += process
        row["rest"] += process - sum(stages.values())
        row["samples"] += last.counters.get("samples", 0.0) - first.counters.get("samples", 0.0)
    return {role: dict(row) for role, row in roles.items()}


def loops(looks: Sequence[Look]) -> dict[str, float]:
    """role -> share of training's CPU that its main threads, the event loops, had."""
    during = [look for look in looks if look.phase == TRAINING]
    shares = {}
    for role, after in during[-1].process_s.items() if during else ():
        spent = after - during[0].process_s.get(role, 0.0)
        shares[role] = (during[-1].loop_s[role] - during[0].loop_s.get(role, 0.0)) / spent if spent > 0 else 0.0
    return shares


def overhead(stages: Mapping[str, Mapping[str, float]], training: Mapping[str, float]) -> dict[str, Any]:
    """Training's CPU seconds by role, split by the shares that the reports give; a role without stages is overhead altogether."""
    rows: dict[str, Seconds] = {}
    for role, spent in training.items():
        mine = stages.get(role, {})
        scale = spent / mine["process"] if mine.get("process") else 0.0
        maths = scale * sum(mine.get(stage, 0.0) for stage in MATHS)
        apart = scale * sum(mine.get(stage, 0.0) for stage in APART)
        rows[role] = {"cpu_s": spent, "maths_s": maths, "apart_s": apart, "overhead_s": spent - maths - apart}
    counted = sum(row["cpu_s"] - row["apart_s"] for row in rows.values())
    total = sum(row["overhead_s"] for row in rows.values())
    return {"roles": rows, "share": total / counted if counted else 0.0, "overhead_s": total, "counted_s": counted}


def per_rollout_us(stages: Mapping[str, Mapping[str, float]], training: Mapping[str, float], samples: float) -> dict[str, Seconds]:
    """role -> overhead's stage -> CPU µs per rollout. The server and the supervisor have no stages: all of theirs is `rest`."""
    table: dict[str, Seconds] = {}
    for role, mine in stages.items():
        costs = {stage: seconds for stage, seconds in mine.items() if stage not in {*MATHS, *APART, "process", "samples"}}
        table[role] = {stage: 1e6 * seconds / max(1.0, mine["samples"]) for stage, seconds in costs.items()}
    for role in sorted(training.keys() - stages.keys()):
        table[role] = {"rest": 1e6 * training[role] / max(1.0, samples)}
    return table


def publish_latency(directory: Path) -> dict[str, float]:
    """From the end of a step to the first token that any producer sampled with its weights; versions may be passed over."""
    steps = {}
    for text in (directory / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "loss" in line:
            steps[(line["term"], line["step"])] = line["at"]
    first: dict[tuple[int, int], float] = {}
    for file in (directory / "logs").glob("producer-*.log"):
        for match in _FIRST_TOKEN.finditer(file.read_text()):
            version, at = (int(match[1]), int(match[2])), float(match[3])
            first[version] = min(at, first.get(version, at))
    last = max(steps, default=None)  # waits for the final evaluation's tickets
    seconds = sorted(first[version] - at for version, at in steps.items() if version in first and version != last)
    if len(seconds) < 2:
        return {"versions": len(seconds), "steps": len(steps)}
    return {
        "median_ms": 1000 * statistics.median(seconds),
        "p90_ms": 1000 * statistics.quantiles(seconds, n=10)[-1],
        "versions": len(seconds),
        "steps": len(steps),
    }


def split(seen: Observed) -> dict[str, Any]:
    """All of it."""
    phases = by_phase(seen.looks)
    training = phases.get(TRAINING, {})
    stages = by_stage(window(seen.reports, seen.looks))
    samples = stages.get("learner", {}).get("samples", 0.0)
    spans = [look.at for look in seen.looks if look.phase == TRAINING]
    scale = training.get("learner", 0.0) / stages["learner"]["process"] if samples else 1.0
    return {
        "phases": phases,
        "training_wall_s": spans[-1] - spans[0] if spans else 0.0,
        "stages": stages,
        "loop_share": loops(seen.looks),
        "overhead": overhead(stages, training),
        "per_rollout_us": per_rollout_us(stages, training, samples * scale),
        "publish": publish_latency(seen.directory),
    }
