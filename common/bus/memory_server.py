"""The state of all topics of one run in this process, and what the scripts do to it. No await stands in here, so every call is atomic."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from common.bus.base import EVAL, EVALUATED, TICKETS, BusState, DeadLetter, Lease, LiveEntry
from common.errors import BusFull, Superseded

FREE = "free"


@dataclass(slots=True)
class Entry:
    """One stream entry; `owner` is the consumer that leased it, FREE once it was released."""

    topic: str
    name: str
    seq: int
    attempt: int
    payload: bytes
    owner: str | None = None
    deliveries: int = 0
    since: float = 0.0
    by: str = ""
    made: float = 0.0


class MemoryServer:
    """What a Redis server holds for one run. `clock` rules leases; `max_bytes` 0 = no limit; while `away`, every call fails."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_bytes: int = 0) -> None:
        self.clock = clock
        self.max_bytes = max_bytes
        self.away = False
        self.arrivals: set[asyncio.Event] = set()
        self._entries = 0
        self.restart()

    def restart(self) -> None:
        """Comes back empty. Entry numbers go on: an old lease never names a new entry."""
        self.run_id = uuid.uuid4().hex
        self.incarnation = ""
        self.topics: dict[str, dict[str, Entry]] = {}
        self.live: dict[int, LiveEntry] = {}
        self.dead: dict[int, DeadLetter] = {}
        self.lives: dict[int, int] = {}
        self.teachers: dict[str, str] = {}
        self.retried: dict[str, int] = defaultdict(int)
        self.alone: dict[tuple[str, str], int] = defaultdict(int)
        self.weights: list[tuple[str, bytes]] = []
        self.reports: dict[str, tuple[bytes, float]] = {}
        self.learner: tuple[str, float, int] | None = None  # owner, until when, term
        self.term = self.cursor = self.applied = self.reconciled = 0
        self.paused = False

    @property
    def used_bytes(self) -> int:
        """Payloads in entries and dead letters."""
        held = sum(len(entry.payload) for entries in self.topics.values() for entry in entries.values())
        return held + sum(len(letter.payload) for letter in self.dead.values())

    def demand_room(self) -> None:
        """A full server refuses a script that adds, before it has changed anything."""
        if self.max_bytes and self.used_bytes >= self.max_bytes:
            raise BusFull("the server in memory has no memory left: raise its max_bytes")

    def fence(self, term: int) -> None:
        """Refuses a lower term, remembers a higher one."""
        if term < self.term:
            raise Superseded(f"a learner of a higher term ({self.term}) has taken over this run: this one stops")
        self.term = term

    def mark_reconciled(self, term: int, incarnation: str) -> None:
        """See Bus.reconciled."""
        self.fence(term)
        if self.state().incarnation == incarnation:
            self.reconciled = term

    def name(self) -> str:
        """A new entry's name."""
        self._entries += 1
        return f"{self._entries}-0"

    def add(self, topic: str, seq: int, attempt: int, payload: bytes, by: str = "") -> None:
        """XADD, and `live` names it."""
        entry = Entry(topic, self.name(), seq, attempt, bytes(payload), by=by, made=self.clock())
        self.topics.setdefault(topic, {})[entry.name] = entry
        if in_ledger(topic):
            self.live[seq] = LiveEntry(topic, entry.name, attempt)
        self.announce()

    def announce(self) -> None:
        """Wakes whoever waits."""
        for arrival in self.arrivals:
            arrival.set()

    def find(self, lease: Lease, owner: str) -> Entry | None:
        """The entry, if `owner` holds it."""
        entry = self.topics.get(lease.topic, {}).get(lease.entry)
        return entry if entry and entry.owner == owner else None

    def owned(self, lease: Lease, owner: str) -> Entry | None:
        """The entry, if `owner` holds it and `live` names it."""
        entry = self.find(lease, owner)
        return entry if entry and (not in_ledger(lease.topic) or self.names(lease)) else None

    def names(self, lease: Lease) -> bool:
        """Whether `live` names exactly this entry."""
        return self.live.get(lease.seq) == LiveEntry(lease.topic, lease.entry, lease.attempt)

    def remove(self, topic: str, name: str) -> None:
        """XACK and XDEL."""
        self.topics.get(topic, {}).pop(name, None)
        self.alone.pop((topic, name), None)

    def bury(self, entry: Entry, reason: str) -> None:
        """From its topic to the dead letters."""
        self.remove(entry.topic, entry.name)
        if in_ledger(entry.topic):
            self.live.pop(entry.seq, None)
            self.dead[entry.seq] = DeadLetter(entry.seq, entry.attempt, reason, entry.payload)

    def revive(self, seq: int, life: int) -> None:
        """Whatever death there was belongs to a life before `life`."""
        self.lives[seq] = life
        self.dead.pop(seq, None)

    def readmit(self, seq: int, ticket: bytes, by: str) -> bool:
        """Adds a ticket unless the seq is live or dead."""
        if seq in self.live or seq in self.dead:
            return False
        self.add(TICKETS, seq, 0, ticket, by)
        return True

    def take(self, topic: str, owner: str, count: int, lease_s: float) -> list[Lease]:
        """Leases up to `count` entries: released, then expired, then new ones, each oldest first."""
        now = self.clock()
        ranks: list[list[Entry]] = [[], [], []]
        for entry in self.topics.setdefault(topic, {}).values():
            if entry.owner == FREE:
                ranks[0].append(entry)
            elif entry.owner is None:
                ranks[2].append(entry)
            elif now - entry.since >= lease_s:
                ranks[1].append(entry)
        taken = [entry for rank in ranks for entry in rank][:count]
        for entry in taken:
            entry.deliveries += entry.owner != FREE
            entry.owner, entry.since = owner, now
        return [Lease(topic, entry.name, entry.seq, entry.attempt, entry.payload, entry.deliveries, entry.by) for entry in taken]

    def state(self) -> BusState:
        """See Bus.state."""
        now = self.clock()
        leased = {topic: sum(e.owner not in {None, FREE} for e in entries.values()) for topic, entries in self.topics.items()}
        return BusState(
            incarnation=f"{self.run_id}:{self.incarnation}",
            term=self.term,
            cursor=self.cursor,
            live=len(self.live),
            applied=self.applied,
            dead=len(self.dead),
            retried=dict(self.retried),
            backlog={topic: len(entries) for topic, entries in self.topics.items()},
            leased=leased,
            used_bytes=self.used_bytes,
            oldest_s={topic: now - min(e.made for e in entries.values()) for topic, entries in self.topics.items() if entries},
        )


def in_ledger(topic: str) -> bool:
    """Evaluations stand outside."""
    return topic not in {EVAL, EVALUATED}
