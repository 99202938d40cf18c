"""The surviving line: which samples have had their effect in this model, and which never will.

Guarantees (P2, P6): a seq is applied at most once, or `apply` fails; applied, dead and neither exclude one another; what is kept grows
with the window and the dead, not with the run. All numbers below `low` are applied but those in `skipped`, which were dead when it passed.
A death counts in the life in which it happened: `reflux dead retry` gives another one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.messages import StepRecord, Version


@dataclass(slots=True)
class Line:
    """`lineage` names the terms that made this model, each with the step it began at; `lives`: how often a sample was revived."""

    term: int = 0
    step: int = 0
    cursor: int = 0
    low: int = 0
    above: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)
    dead: dict[int, str] = field(default_factory=dict)
    lives: dict[int, int] = field(default_factory=dict)
    lineage: list[Version] = field(default_factory=list)

    @property
    def version(self) -> Version:
        """Of the weights at this point."""
        return Version(self.term, self.step)

    @property
    def applied(self) -> int:
        """How many samples are in the model."""
        return self.low - len(self.skipped) + len(self.above)

    def __contains__(self, seq: object) -> bool:
        """Whether the sample is in the model."""
        assert isinstance(seq, int)
        return seq in self.above or (seq < self.low and seq not in self.skipped)

    def apply(self, record: StepRecord) -> None:
        """The record's step happened: its samples are in."""
        assert record.step == self.step + 1, f"step {record.step} after step {self.step}"
        assert len(set(record.seqs)) == len(record.seqs), f"step {record.step} names a seq twice"
        twice = [seq for seq in record.seqs if seq in self]
        assert not twice, f"step {record.step} names {twice} again"
        for seq in record.seqs:
            self.dead.pop(seq, None)
            self.lives.pop(seq, None)
            if seq in self.skipped:
                self.skipped.remove(seq)
            else:
                self.above.add(seq)
        self.step = record.step
        self.cursor = max(self.cursor, record.cursor, max(record.seqs) + 1)
        self._raise_low()

    def bury(self, dead: Mapping[int, str]) -> None:
        """These samples will not be tried again; those in the model stay there."""
        self.dead.update({seq: reason for seq, reason in dead.items() if seq not in self})
        self._raise_low()

    def join(self, dead: Mapping[int, str], lives: Mapping[int, int]) -> None:
        """What the bus knows of the dead and the revived: of two opinions the one of the later life counts, and of one life death."""
        for seq, life in lives.items():
            if seq not in self and life > self.lives.get(seq, 0):
                self.lives[seq] = life
                self.dead.pop(seq, None)
        self.bury({seq: reason for seq, reason in dead.items() if lives.get(seq, 0) >= self.lives.get(seq, 0)})

    def begin(self, term: int) -> None:
        """A new term goes on from here."""
        assert term > self.term
        self.term = term
        self.lineage.append(Version(term, self.step))

    def missing(self, live: Collection[int]) -> list[int]:
        """Numbers below the cursor that are neither applied nor dead nor live."""
        candidates = [seq for seq in range(self.low, self.cursor) if seq not in self.above]
        return [seq for seq in sorted({*self.skipped, *candidates}) if seq not in self.dead and seq not in live]

    def first(self, count: int) -> list[int]:
        """The `count` smallest numbers below the cursor that are neither applied nor dead: what strict order trains next."""
        return self.missing(())[:count]

    def _raise_low(self) -> None:
        while self.low in self.above or self.low in self.dead:
            if self.low in self.above:
                self.above.remove(self.low)
            else:
                self.skipped.add(self.low)
            self.low += 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, a copy."""
        return {
            "term": self.term,
            "step": self.step,
            "cursor": self.cursor,
            "low": self.low,
            "above": sorted(self.above),
            "skipped": sorted(self.skipped),
            "dead": {str(seq): reason for seq, reason in sorted(self.dead.items())},
            "lives": {str(seq): life for seq, life in sorted(self.lives.items())},
            "lineage": [list(version) for version in self.lineage],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Line:
        """What `to_json` gave."""
        return cls(
            term=values["term"],
            step=values["step"],
            cursor=values["cursor"],
            low=values["low"],
            above=set(values["above"]),
            skipped=set(values["skipped"]),
            dead={int(seq): reason for seq, reason in values["dead"].items()},
            lives={int(seq): life for seq, life in values.get("lives", {}).items()},  # checkpoints of 0.1.0 have none
            lineage=[Version(*version) for version in values["lineage"]],
        )
