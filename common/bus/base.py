"""The seam between stages. Every hop is one entry in, one entry out, atomic on the server (invariants P1, P6).

Work topics are `tickets`, `rollouts:<teacher>` and `scored`, plus `eval` and `evaluated`, which stand outside seq and ledger. For the first
three `live[seq]` always names the one entry that carries the seq: a script refuses to act for a worker that no longer owns that entry. A
call repeated after a lost reply is recognised as done. All scripts take many entries at once and treat each by itself.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

TICKETS = "tickets"
SCORED = "scored"
EVAL = "eval"
EVALUATED = "evaluated"


def rollouts(teacher: str) -> str:
    """The topic that a teacher's scorers lease from."""
    return f"rollouts:{teacher}"


@dataclass(frozen=True, slots=True)
class Lease:
    """One entry that this consumer owns until `lease_s` after its last renewal. `deliveries` > 1: another worker had it before. `by`: who
    put it there."""

    topic: str
    entry: str
    seq: int
    attempt: int
    payload: bytes
    deliveries: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """The leased entry leaves its topic and `payload` enters `topic`, in one script."""

    lease: Lease
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Retry:
    """The sample goes back to `tickets` as `ticket` (attempt + 1, encoded), or to the dead letters after `max_attempts`."""

    lease: Lease
    ticket: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Burial:
    """The sample goes to the dead letters with its payload."""

    lease: Lease
    reason: str


Outcome = Literal["done", "refused"]


@dataclass(frozen=True, slots=True)
class LiveEntry:
    """Where a seq is."""

    topic: str
    entry: str
    attempt: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A sample that will never be trained on, unless `reflux dead retry` gives it another life."""

    seq: int
    attempt: int
    reason: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Revival:
    """A dead sample is to be tried again: `ticket` is of `attempt`, one more than that in which it died."""

    seq: int
    attempt: int
    ticket: bytes


@dataclass(frozen=True, slots=True)
class BusState:
    """A consistent look at the run (one script). Balance: cursor = live + applied + dead (P6)."""

    incarnation: str  # server's run id + the run's own key: changes when the server restarts or comes back empty
    term: int
    cursor: int
    live: int
    applied: int
    dead: int
    retried: Mapping[str, int]
    backlog: Mapping[str, int]  # topic -> entries, leased ones included
    leased: Mapping[str, int]  # topic -> entries leased at present
    used_bytes: int  # the server's memory
    obstacle: str = ""  # why the server refuses writes now
    oldest_s: Mapping[str, float] = field(default_factory=dict)  # topic -> age of its oldest entry; empty ones are left out


class Bus(Protocol):
    """One run's topics on one server. Raises BusUnreachable when `outage_timeout_s` passes without an answer, BusFull, Superseded."""

    # every worker -------------------------------------------------------------------------------------------------
    async def lease(self, topics: Sequence[str], count: int, wait_s: float) -> list[Lease]:
        """Up to `count` entries, topics in order of priority: first those whose lease expired, then new ones.
        Waits at most `wait_s` for the first.
        Creates missing groups at id 0. An entry that some worker's lease lost before has deliveries > 1."""

    async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Renews; returns those that this consumer still owns."""

    async def release(self, leases: Sequence[Lease]) -> None:
        """Gives entries back so that others get them at once; neither the delivery nor a lone try counts as evidence of poison."""

    async def hand_off(self, moves: Sequence[Move]) -> list[Outcome]:
        """One in, one out."""

    async def retry(self, retries: Sequence[Retry], max_attempts: int) -> list[Outcome]:
        """Back to `tickets`, or dead; outside the ledger back to its own topic, or dropped."""

    async def bury(self, burials: Sequence[Burial]) -> list[Outcome]:
        """To the dead letters; outside the ledger the entry is only dropped."""

    async def begin_alone(self, lease: Lease) -> int:
        """Counts a try of an entry that is worked alone; returns how many there were before (poison detection)."""

    async def vouch(self, teacher: str, digest: str) -> str:
        """Says which weights serve `teacher`; returns those that were named first in this run."""

    async def weights_after(self, entry: str, wait_s: float) -> list[tuple[str, bytes]]:
        """Manifests on the weights log after `entry` ("0" = all that are kept), oldest first."""

    async def beat(self, name: str, report: bytes, ttl_s: float) -> None:
        """Leaves this worker's report for `reports`."""

    async def reports(self) -> dict[str, bytes]:
        """The reports of all workers alive."""

    # the learner: each call carries its term; a lower one raises Superseded ---------------------------------------------
    async def claim(self, term: int, owner: str, lease_s: float, take_over: bool) -> None:
        """Becomes the learner of `term` (higher than any seen): raises LearnerActive while another
        owner's lease lives, unless `take_over`."""

    async def hold(self, term: int, owner: str, lease_s: float) -> None:
        """Renews the learner's own lease."""

    async def resign(self, term: int, owner: str) -> None:
        """Ends it if `owner` has it, so that a successor need not wait; never raises Superseded."""

    async def admit(self, term: int, first: int, tickets: Sequence[tuple[int, bytes]]) -> int:
        """Compare-and-set: where the cursor is `first`, adds (seq, ticket) for consecutive seqs, skipping dead ones, and moves the cursor
        behind them. Otherwise changes nothing. Returns the cursor."""

    async def readmit(self, term: int, tickets: Sequence[tuple[int, bytes]]) -> int:
        """Adds those that are neither live nor dead, raising the cursor if need be; returns how many."""

    async def settle(self, term: int, leases: Sequence[Lease]) -> int:
        """Counts as applied and removes those entries that `live` names; a no-op for the others. Returns how many."""

    async def discard(self, term: int, leases: Sequence[Lease]) -> None:
        """Removes entries that `live` does not name, and those whose seq is in the dead letters (also from `live`); counts nothing. Leaves
        an entry that `live` names and that is not dead: removing it would break the ledger (applied ones are settled first)."""

    async def publish(self, term: int, manifest: bytes, keep: int) -> str:
        """Appends to the weights log and keeps its last `keep` entries; returns the entry."""

    async def live(self) -> dict[int, LiveEntry]:
        """Where every live seq is."""

    async def dead_letters(self) -> dict[int, DeadLetter]:
        """All dead letters; whether one that dies or is revived meanwhile is among them is left open."""

    async def reconcile(
        self, term: int, cursor: int, applied: int, gone: Container[int], dead: Mapping[int, str], lives: Mapping[int, int]
    ) -> int:
        """Recreates groups, sets a new incarnation key if missing, joins `dead` into the dead letters, removes entry and live record of
        the seqs in `gone` (applied) and `dead`, frees what learners of lower terms had leased, sets the ledger's applied, raises the
        cursor to at least `cursor`; returns it. `lives`: how often each seq was revived, as the caller knows; of two opinions on whether
        a seq is dead the one of the later life counts, and of one life death."""

    async def reconciled(self, term: int, incarnation: str) -> None:
        """The lost are readmitted too: from now on an audit may insist that every seq is in its place. A no-op where the server is not
        of this incarnation any more; a lost server, another `reconcile` or a higher term ends it."""

    async def state(self) -> BusState:
        """The ledger and the backlogs."""

    async def glance(self, topic: str, count: int) -> list[bytes]:
        """Payloads of the topic's oldest entries, leased or not; for a look only: nothing changes, nobody is disturbed."""

    async def lives(self) -> dict[int, int]:
        """How often each seq was revived; those that never were are left out."""

    async def revive(self, revivals: Sequence[Revival]) -> list[int]:
        """From the dead letters back to `tickets`, with the tries of a new sample before it; returns the seqs. One that is not dead, or
        did not die in the attempt before the revival's, stays as it is."""

    async def strip(self, seqs: Sequence[int]) -> list[int]:
        """Frees the memory that these dead letters' payloads take; they stay dead. Returns those that were there."""

    async def purge(self, force: bool) -> list[str]:
        """Removes the whole run from the server. Where somebody lives and it is not forced, changes nothing and returns who."""

    async def pause(self, paused: bool) -> None:
        """Stops or restarts admission for the whole run; `paused` asks."""

    async def paused(self) -> bool:
        """Whether admission is stopped."""

    async def ask(self, term: int, topic: str, payloads: Sequence[tuple[int, bytes]]) -> None:
        """Adds (index, payload) entries to `eval`."""

    async def clear(self, term: int, topic: str) -> None:
        """Drops everything in `eval` or `evaluated`."""

    async def answer(self, term: int, leases: Sequence[Lease]) -> None:
        """Acknowledges and deletes entries of `evaluated`."""

    async def aclose(self) -> None:
        """Closes connections; leases stay as they are."""
