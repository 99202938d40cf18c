"""What all trials together show: faults by kind, samples, recovery times, accuracy beside the undisturbed runs; as a table and as JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chaos_line import calls
from chaos_storm import Injected
from chaos_trial import Trial

ROLES = ("producer", "scorer", "learner")
MOST_COLD_STARTS = 3.0
POINTS = 0.02
MOST_MISSES = 3
"""A kind that was tried so often and never hit is not tested: its point has moved, or is gone."""


@dataclass(frozen=True, slots=True)
class RoleRecovery:
    """Seconds from a role's death to the next one ready for work; `late` are those beyond three of its cold starts in the same run and the
    lease."""

    role: str
    cold: float
    count: int
    median: float
    most: float
    bound: float
    late: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """`calm` and `stormy` trials of the same seeds."""

    calm: Sequence[Trial]
    stormy: Sequence[Trial]
    lease_s: float

    @property
    def injected(self) -> list[Injected]:
        return [one for trial in self.stormy for one in trial.injected]

    @property
    def difference(self) -> float | None:
        """Mean pass@1 of the disturbed runs less that of the undisturbed ones."""
        calm, stormy = (_accuracies(trials) for trials in (self.calm, self.stormy))
        return statistics.mean(stormy) - statistics.mean(calm) if calm and stormy else None

    def recovery(self) -> Iterator[RoleRecovery]:
        for role in ROLES:
            times = [(one.seconds, trial.cold[role]) for trial in self.stormy for one in trial.recoveries if one.role == role]
            if not times:
                continue
            seconds = [took for took, _ in times]
            cold = statistics.median(trial.cold[role] for trial in self.stormy if role in trial.cold)
            bounds = [MOST_COLD_STARTS * own + self.lease_s for _, own in times]
            late = sum(took > bound for took, bound in zip(seconds, bounds, strict=True))
            yield RoleRecovery(role, cold, len(times), statistics.median(seconds), max(seconds), min(bounds), late)

    @property
    def missed(self) -> dict[str, int]:
        """Kinds that found no occasion, and how often one was looked for."""
        tried = sum((Counter(trial.tried) for trial in self.stormy), Counter[str]())
        return {kind: times for kind, times in sorted(tried.items()) if not any(one.kind == kind for one in self.injected)}

    @property
    def failures(self) -> list[str]:
        """In words; empty where every promise held."""
        wrong = [one for trial in (*self.calm, *self.stormy) for one in trial.failures]
        wrong += [f"{one.role}: {one.late} of {one.count} recoveries took longer than the bound" for one in self.recovery() if one.late]
        wrong += [f"{kind}: tried {times} times, never hit" for kind, times in self.missed.items() if times >= MOST_MISSES]
        if self.difference is not None and abs(self.difference) > POINTS:
            wrong.append(f"pass@1 differs by {100 * self.difference:+.1f} points")
        return [*wrong, *self._far_off()]

    def _far_off(self) -> Iterator[str]:
        """Runs whose accuracy is not that of the undisturbed ones; a mean would hide one among many."""
        usual = _accuracies(self.calm)
        for trial in self.stormy if usual else ():
            for accuracy in _accuracies([trial]):
                off = accuracy - statistics.mean(usual)
                if abs(off) > POINTS:
                    yield f"{trial.name}: pass@1 differs by {100 * off:+.1f} points"

    def to_json(self) -> dict[str, Any]:
        return {
            "lease_s": self.lease_s,
            "faults": len(self.injected),
            "difference": self.difference,
            "failures": self.failures,
            "calm": [trial.to_json() for trial in self.calm],
            "stormy": [trial.to_json() for trial in self.stormy],
        }

    # ---- as Markdown -----------------------------------------------------------------------------------------------------------
    def __str__(self) -> str:
        return "\n".join([*self._faults(), "", *self._recoveries(), "", *self._runs()])

    def _faults(self) -> Iterator[str]:
        kinds, survived = Counter(one.kind for one in self.injected), Counter(one.kind for one in self.injected if one.survived)
        yield "| Fault | Injected | Survived |"
        yield "|---|--:|--:|"
        for kind in sorted(kinds):
            yield f"| {kind} | {kinds[kind]} | {survived[kind]} |"
        yield f"| **all** | **{kinds.total()}** | **{survived.total()}** |"
        if self.missed:
            yield ""
            yield "Tried, without an occasion: " + ", ".join(f"{kind} {times}" for kind, times in self.missed.items()) + "."
        lost = sum((Counter(trial.replies_lost) for trial in self.stormy), Counter[str]())
        if lost:
            yield ""
            yield "Lost replies by call: " + ", ".join(f"{name} {count}" for name, count in sorted(lost.items())) + "."
            never = sorted(set(calls().values()) - set(lost))
            yield f"Scripts whose reply was never lost: {', '.join(never) or 'none'}."

    def _recoveries(self) -> Iterator[str]:
        yield "| Role | Cold start (s) | Deaths timed | Recovery: median (s) | max (s) | Bound (s) | Beyond it |"
        yield "|---|--:|--:|--:|--:|--:|--:|"
        for one in self.recovery():
            yield f"| {one.role} | {one.cold:.1f} | {one.count} | {one.median:.1f} | {one.most:.1f} | {one.bound:.1f} | {one.late} |"

    def _runs(self) -> Iterator[str]:
        yield "| Run | Faults | Seconds | Samples | Lost | Applied twice | Hand-offs refused | Dead | Learners' lives | pass@1 | Audit |"
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
        for trial in (*self.calm, *self.stormy):
            end = trial.samples
            accuracy = "–" if end.pass_at_1 is None else f"{100 * end.pass_at_1:.1f} %"
            figures = (len(trial.injected), f"{trial.seconds:.0f}", end.applied, end.lost, end.twice, trial.refused, end.dead, end.terms)
            verdict = "passed" if end.audited and end.finished else "**failed**"
            yield f"| {trial.name} | " + " | ".join(str(figure) for figure in figures) + f" | {accuracy} | {verdict} |"
        if self.difference is not None:
            yield ""
            yield f"Mean pass@1 of the disturbed runs less that of the undisturbed ones: {100 * self.difference:+.1f} points."


def _accuracies(trials: Sequence[Trial]) -> list[float]:
    return [trial.samples.pass_at_1 for trial in trials if trial.samples.pass_at_1 is not None]
