"""What the bus has to be, in a few lines: where every seq is, who may move it, and what was answered already."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from common.bus.base import Lease
from common.errors import Superseded

MODELLED = {"admit", "readmit", "settle", "hand_off", "retry", "bury", "release", "revive", "reconcile"}
TERMED = {"claim", "hold", "admit", "readmit", "settle", "discard", "publish", "reconcile", "reconciled"}


@dataclass
class Place:
    """Of a live seq: the entry as it was leased last, and by whom; nobody knows an entry that was never leased."""

    attempt: int = 0
    owner: str = ""
    lease: Lease | None = field(default=None, repr=False)


@dataclass
class Model:
    """Each method does what the call of that name has to do, and returns what it has to answer."""

    cursor: int = 0
    term: int = 0
    applied: int = 0
    live: dict[int, Place] = field(default_factory=dict)
    dead: dict[int, int] = field(default_factory=dict)  # seq -> the attempt in which it died
    lives: dict[int, int] = field(default_factory=dict)
    answered: dict[object, object] = field(default_factory=dict, repr=False)
    set_back: bool = False  # and not reconciled since: the server may count as applied what the line has lost

    def copy(self) -> Model:
        return copy.deepcopy(self)

    @property
    def missing(self) -> int:
        """How many seqs are nowhere (P6: none, but while a reconcile is under way)."""
        return self.cursor - len(self.live) - self.applied - len(self.dead)

    def call(self, call, me, name, arguments):
        """`call` is the same for a repetition after a lost reply."""
        if call in self.answered:
            return self.answered[call]
        if name in TERMED and (arguments[0] < self.term or (name == "claim" and arguments[0] == self.term)):
            return Superseded
        if name in TERMED:
            self.term = arguments[0]
            arguments = arguments[1:]
        before, act = self.missing, getattr(self, name) if name in MODELLED else None
        answer = act(me, *arguments) if act else None
        assert self.missing == before or name in {"readmit", "reconcile"}, f"{name} unbalances the ledger by {self.missing - before}"
        assert self.missing >= 0 or self.set_back, f"{name} makes the ledger count something twice"
        if act and name != "reconcile":
            self.answered[call] = answer
        return answer

    def leased(self, me, leases):
        for lease in leases:
            self.live[lease.seq] = Place(lease.attempt, me, lease)

    def admit(self, me, first, tickets):
        if self.cursor == first:
            self.readmit(me, tickets)
            self.cursor = first + len(tickets)
        return self.cursor

    def readmit(self, me, tickets):
        added = [seq for seq, _ in tickets if seq not in self.live and seq not in self.dead]
        self.live |= {seq: Place() for seq in added}
        self.cursor = max([self.cursor, *(seq + 1 for seq in added)])
        return len(added)

    def hand_off(self, me, moves):
        return [self._move(me, move.lease, Place(move.lease.attempt)) for move in moves]

    def retry(self, me, retries, most):
        return [self._move(me, one.lease, self._next_try(one.lease, most)) for one in retries]

    def _next_try(self, lease, most):
        tries = most * (1 + self.lives.get(lease.seq, 0))
        return Place(lease.attempt + 1) if lease.attempt + 1 < tries else None

    def bury(self, me, burials):
        return [self._move(me, burial.lease, None) for burial in burials]

    def _move(self, me, lease, target):
        place = self.live.get(lease.seq)
        if place is None or place.owner != me or place.lease.entry != lease.entry:
            return "refused"
        if target is None:
            del self.live[lease.seq]
            self.dead[lease.seq] = lease.attempt
        else:
            self.live[lease.seq] = target
        return "done"

    def revive(self, me, revivals):
        revived = [one for one in revivals if one.attempt - 1 == self.dead.get(one.seq)]
        for one in revived:
            del self.dead[one.seq]
            self.lives[one.seq] = self.lives.get(one.seq, 0) + 1
            self.live[one.seq] = Place(one.attempt)
        return [one.seq for one in revived]

    def release(self, me, leases):
        for lease in leases:
            place = self.live.get(lease.seq, Place())
            if place.owner == me and place.lease.entry == lease.entry:
                place.owner = ""

    def settle(self, me, leases):
        named = {lease.seq for lease in leases if self._names(lease)}
        self.live = {seq: place for seq, place in self.live.items() if seq not in named}
        self.applied += len(named)
        return len(named)

    def _names(self, lease):
        place = self.live.get(lease.seq)
        return place is not None and place.lease is not None and place.lease.entry == lease.entry

    def reconcile(self, me, cursor, applied, gone, dead, lives):
        for seq in [seq for seq in {*self.live, *self.dead} if seq in gone]:
            self.live.pop(seq, None)
            self.dead.pop(seq, None)
        for seq in [seq for seq, life in lives.items() if life > self.lives.get(seq, 0)]:
            self.lives[seq] = lives[seq]
            self.dead.pop(seq, None)
        for seq in [seq for seq in dead if lives.get(seq, 0) >= self.lives.get(seq, 0)]:
            self.dead.setdefault(seq, self.live.pop(seq, Place()).attempt)
        for place in self.live.values():
            if place.lease is not None and place.lease.topic == "scored" and place.owner != me:
                place.owner = ""
        self.cursor, self.applied, self.set_back = max(self.cursor, cursor), applied, False
        return self.cursor
