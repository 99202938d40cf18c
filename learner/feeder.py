"""Who may be sampled next: pure arithmetic on the ledger, and the seam to the prompts.

Guarantee (P3): with `v` the step of the newest publication, at most (v + S + 1)·batch samples that can still be trained, or were, are ever
admitted, and never more than the run needs. Proof that strict order then bounds staleness by S: the k-th sample that is trained (k from 0)
is trained at step k // batch + 1, on weights of step k // batch ≤ v + S, and was sampled with weights no older than v.

Guarantee: beyond the one batch that a step needs, nothing is admitted that could take the server's memory past bus.max_bytes on its way, so
that a hand-off always finds room. Proof: an entry never grows past the longest sample's bytes, and what is in `scored` grows no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common.bus.base import SCORED, BusState
from common.messages import Ticket, Version

NEARLY_FULL = 0.9
"""Admission stops at this share of bus.max_bytes: what is in flight must still get through the hops."""


class PromptSource(Protocol):
    """The training prompts in their shuffled order; samples are numbered through all epochs."""

    fingerprint: str

    def __len__(self) -> int:
        """How many prompts there are."""

    def ticket(self, seq: int, attempt: int, min_version: Version) -> Ticket:
        """The ticket of sample number `seq`; the same for the same arguments in every process."""


class EvaluationSource(Protocol):
    """The held-out questions."""

    fingerprint: str

    def __len__(self) -> int:
        """How many answers an evaluation asks for."""

    def tickets(self, evaluation: str, version: Version) -> list[Ticket]:
        """All questions, to be answered by `version`; `seq` counts them, `metadata` has `evaluation` and `answer`."""


@dataclass(frozen=True, slots=True)
class Window:
    """(S+1)·batch, moving with the publications, up to the end of the run."""

    batch_size: int
    max_staleness: int
    steps: int
    max_bytes: int
    largest_sample: int  # bytes

    def room(self, published: int, applied: int, state: BusState) -> int:
        """How many samples to admit now; the dead have left and are replaced, re-admitted ones may make it negative."""
        return min(self.ahead(published, applied, state.live), max(self._fit(state), self.batch_size - state.live))

    def ahead(self, published: int, applied: int, live: int) -> int:
        """The same where memory is no matter."""
        return min(published + self.max_staleness + 1, self.steps) * self.batch_size - applied - live

    def _fit(self, state: BusState) -> int:
        growing = state.live - state.backlog.get(SCORED, 0)
        return (self.max_bytes - state.used_bytes) // self.largest_sample - growing

    def blocked(self, state: BusState, *, paused: bool) -> str:
        """Why nothing may be admitted whatever the room; empty if it may."""
        if paused:
            return "the run is paused: `reflux resume` goes on"
        if state.used_bytes > NEARLY_FULL * self.max_bytes:
            return f"the bus is nearly full ({state.used_bytes} of {self.max_bytes} bytes)"
        return ""
