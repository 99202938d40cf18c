"""What lies where under runs/NAME, and whose run it is.

Guarantee: a directory belongs to the identity configuration that made it; another one is refused with the keys that differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.errors import ConfigError, IdentityError
from learner.disk import write_durably


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of a run."""

    root: Path

    @property
    def identity(self) -> Path:
        """Identity keys of the configuration and the fingerprints of its data."""
        return self.root / "identity.json"

    @property
    def config(self) -> Path:
        """The resolved configuration as it was last run."""
        return self.root / "config.json"

    @property
    def checkpoints(self) -> Path:
        """checkpoints/term000001-step00000050/."""
        return self.root / "checkpoints"

    @property
    def journal(self) -> Path:
        """journal/term000001/segment-00000001.rfx."""
        return self.root / "journal"

    @property
    def terms(self) -> Path:
        """One empty directory for each learner's life."""
        return self.root / "terms"

    @property
    def metrics(self) -> Path:
        """One JSON object per step; of several lines of a step the last counts."""
        return self.root / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One JSON object per evaluation; of several lines of a step the last counts."""
        return self.root / "evaluations.jsonl"

    @property
    def open_evaluation(self) -> Path:
        """The manifest that an unfinished evaluation asks about."""
        return self.root / "evaluation-open.rfx"

    @property
    def best(self) -> Path:
        """The manifest of the version with the best evaluation."""
        return self.root / "best.rfx"

    @property
    def tensorboard(self) -> Path:
        """Event files, made from metrics.jsonl."""
        return self.root / "tensorboard"

    @property
    def model(self) -> Path:
        """The trained student in Hugging Face format."""
        return self.root / "model"

    @property
    def result(self) -> Path:
        """The outcome of a finished run."""
        return self.root / "result.json"

    def finished(self) -> dict[str, Any] | None:
        """The result, if the run is done."""
        result: dict[str, Any] | None = json.loads(self.result.read_text()) if self.result.exists() else None
        return result

    def open(self, config: RunConfig, fingerprints: dict[str, str]) -> None:
        """Makes it this run's directory; raises IdentityError where it is another's."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for path in (self.checkpoints, self.journal, self.terms):
                path.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write the run's directory {self.root}: {error}; set run.dir to one you can write") from None
        identity = flatten(config.identity()) | {f"fingerprint of {name}": value for name, value in fingerprints.items()}
        if self.identity.exists():
            self._compare(identity)
        else:
            write_durably(self.identity, json.dumps(identity, indent=1, sort_keys=True))

    def keep(self, config: RunConfig) -> None:
        """The resolved configuration, of a learner that has its term."""
        write_durably(self.config, config.public().model_dump_json(indent=1))

    def _compare(self, identity: dict[str, Any]) -> None:
        before = json.loads(self.identity.read_text())
        after = json.loads(json.dumps(identity))
        differing = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        if differing:
            changes = ", ".join(f"{key} was {before.get(key)!r} and is {after.get(key)!r}" for key in differing)
            raise IdentityError(f"{self.root} belongs to another run ({changes}): restore these, choose another run.name, or use --fresh")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
