"""What a run has consumed so far: kept in every checkpoint and brought forward by replay, so that a crash never counts a sample twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from learner.batch import Consumed
from learner.training import StepStats


@dataclass(slots=True)
class Tally:
    """Totals over the surviving line; `wall_s` over all lives that made it."""

    samples: int = 0
    tokens: int = 0  # response tokens
    trained: int = 0
    processed: int = 0
    masked: int = 0
    ghosts: int = 0
    mixed: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    versions: int = 0
    replayed_steps: int = 0
    replay_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)  # role/worker -> CPU seconds of the process
    stages: dict[str, dict[str, float]] = field(default_factory=dict)  # role/worker -> stage -> CPU seconds

    def add(self, stats: StepStats, consumed: Consumed) -> None:
        """One more step."""
        self.samples += stats.samples
        self.tokens += consumed.tokens
        self.trained += stats.tokens
        self.processed += stats.processed
        self.masked += consumed.masked
        self.ghosts += consumed.ghosts
        self.mixed += consumed.mixed
        self.staleness.update(consumed.staleness)

    @property
    def mixed_version_share(self) -> float:
        """Share of samples whose weights changed in mid-rollout."""
        return self.mixed / self.samples if self.samples else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, a copy."""
        return asdict(self) | {"staleness": {str(lag): count for lag, count in sorted(self.staleness.items())}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        staleness = Counter({int(lag): count for lag, count in values["staleness"].items()})
        return cls(**{**values, "staleness": staleness, "cpu_s": dict(values["cpu_s"]), "stages": dict(values["stages"])})
