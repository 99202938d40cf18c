"""What came out of a run: result.json, from the tally, the evaluations and the bus's ledger."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from common.bus.base import BusState
from common.config import RunConfig
from learner.directory import RunDirectory
from learner.evaluation import Evaluation, Evaluator
from learner.line import Line
from learner.tally import Tally


def result_of(
    *, config: RunConfig, directory: RunDirectory, line: Line, tally: Tally, evaluator: Evaluator, state: BusState
) -> dict[str, Any]:
    """Plain values; `before` and `after` are None where they were not evaluated."""
    evaluations = [evaluator.done[step] for step in sorted(evaluator.done)]
    return {
        "run": config.run.name,
        "pass_at_1": _pass_at_1(evaluator, config.learner.steps),
        "evaluations": [{"step": one.step, "pass_at_1": one.pass_at_1, "n": one.n, "seconds": one.seconds} for one in evaluations],
        "samples": tally.samples,
        "tokens": tally.tokens,
        "trained_tokens": tally.trained,
        "processed_tokens": tally.processed,
        "wall_s": round(tally.wall_s, 3),
        "cpu_s": {role: round(seconds, 3) for role, seconds in sorted(cpu_by_role(tally).items())},
        "cpu_stages": stages_by_role(tally),
        "staleness": {
            "histogram": {str(lag): count for lag, count in sorted(tally.staleness.items())},
            "max": max(tally.staleness, default=0),
            "masked_tokens": tally.masked,
            "ghost_tokens": tally.ghosts,
        },
        "ledger": {"admitted": state.cursor, "applied": state.applied, "live": state.live, "dead": state.dead},
        "retried": dict(state.retried),
        "dead": {str(seq): reason for seq, reason in sorted(line.dead.items())},
        "steps": line.step,
        "term": line.term,
        "versions": tally.versions,
        "replayed_steps": tally.replayed_steps,
        "replay_s": round(tally.replay_s, 3),
        "mixed_version_share": round(tally.mixed_version_share, 6),
        "model": str(directory.model),
    }


def _pass_at_1(evaluator: Evaluator, steps: int) -> dict[str, Any]:
    before, after = evaluator.done.get(0), evaluator.done.get(steps)
    return {"before": _share(before), "after": _share(after), "n": after.n if after else 0, "best": _share(evaluator.best)}


def _share(one: Evaluation | None) -> float | None:
    return None if one is None else one.pass_at_1


def cpu_by_role(tally: Tally) -> dict[str, float]:
    """CPU seconds of all processes that worked for the run."""
    by_role: defaultdict[str, float] = defaultdict(float)
    for worker, seconds in tally.cpu_s.items():
        by_role[worker.partition("/")[0]] += seconds
    return dict(by_role)


def stages_by_role(tally: Tally) -> dict[str, dict[str, float]]:
    """What the stages that workers measure took of it; the rest is start-up and overhead."""
    by_role: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for worker, stages in tally.stages.items():
        for stage, seconds in stages.items():
            by_role[worker.partition("/")[0]][stage] += seconds
    return {role: {stage: round(seconds, 3) for stage, seconds in sorted(stages.items())} for role, stages in sorted(by_role.items())}
