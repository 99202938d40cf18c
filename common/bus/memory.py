"""The bus without a server, for tests and for understanding: the same promises as the Redis adapter, kept by the same contract suite.

Several MemoryBus objects, one for each worker, share one MemoryServer.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TypeVar

from common.bus.base import EVALUATED, SCORED, TICKETS, Burial, BusState, DeadLetter, Lease, LiveEntry, Move, Outcome, Retry
from common.bus.memory_operator import OperatorCalls
from common.bus.memory_server import FREE, Entry, MemoryServer, in_ledger
from common.errors import LearnerActive, Superseded

T = TypeVar("T")
Ask = TypeVar("Ask", Move, Retry, Burial)


class MemoryBus(OperatorCalls):
    """One worker's bus on a shared MemoryServer."""

    async def _wait_for(self, look: Callable[[MemoryServer], list[T]], wait_s: float) -> list[T]:
        """What `look` finds at once, or once something arrives, or nothing."""
        found = look(await self._reach())
        if found or wait_s <= 0:
            return found
        arrival = asyncio.Event()
        self._server.arrivals.add(arrival)
        try:
            async with asyncio.timeout(wait_s):
                while not found:
                    await arrival.wait()
                    arrival.clear()
                    found = look(self._server)
        except TimeoutError:
            pass
        finally:
            self._server.arrivals.discard(arrival)
        return found

    async def lease(self, topics: Sequence[str], count: int, wait_s: float) -> list[Lease]:
        """See Bus.lease."""

        def look(server: MemoryServer) -> list[Lease]:
            leases: list[Lease] = []
            for topic in topics:
                leases += server.take(topic, self._name, count - len(leases), self._lease_s)
            return leases

        return await self._wait_for(look, wait_s)

    async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """See Bus.renew."""
        server = await self._reach()
        held = [(lease, entry) for lease in leases if (entry := server.find(lease, self._name))]
        for _, entry in held:
            entry.since = server.clock()
        return [lease for lease, _ in held]

    async def release(self, leases: Sequence[Lease]) -> None:
        """See Bus.release."""
        server = await self._reach()
        for lease in leases:
            if entry := server.find(lease, self._name):
                entry.owner = FREE
                if (lease.topic, lease.entry) in server.alone:
                    server.alone[lease.topic, lease.entry] -= 1
        server.announce()

    async def hand_off(self, moves: Sequence[Move]) -> list[Outcome]:
        """See Bus.hand_off."""
        server = await self._reach()
        server.demand_room()

        def act(entry: Entry, move: Move) -> None:
            server.add(move.topic, entry.seq, entry.attempt, move.payload, self._name)
            server.remove(entry.topic, entry.name)

        return self._each(moves, act)

    async def retry(self, retries: Sequence[Retry], max_attempts: int) -> list[Outcome]:
        """See Bus.retry."""
        server = await self._reach()
        server.demand_room()

        def act(entry: Entry, retry: Retry) -> None:
            tries = 1 + server.lives.get(entry.seq, 0) if in_ledger(entry.topic) else 1
            if entry.attempt + 1 >= tries * max_attempts:
                server.bury(entry, retry.reason)
                return
            server.retried[retry.reason] += 1
            server.add(TICKETS if in_ledger(entry.topic) else entry.topic, entry.seq, entry.attempt + 1, retry.ticket, self._name)
            server.remove(entry.topic, entry.name)

        return self._each(retries, act)

    async def bury(self, burials: Sequence[Burial]) -> list[Outcome]:
        """See Bus.bury."""
        server = await self._reach()
        return self._each(burials, lambda entry, burial: server.bury(entry, burial.reason))

    def _each(self, asked: Sequence[Ask], act: Callable[[Entry, Ask], None]) -> list[Outcome]:
        """Acts where this worker owns the entry and `live` names it."""
        outcomes: list[Outcome] = []
        for one in asked:
            entry = self._server.owned(one.lease, self._name)
            if entry:
                act(entry, one)
            outcomes.append("done" if entry else "refused")
        return outcomes

    async def begin_alone(self, lease: Lease) -> int:
        """See Bus.begin_alone."""
        server = await self._reach()
        tries = server.alone.get((lease.topic, lease.entry), 0)
        if server.owned(lease, self._name):
            server.alone[lease.topic, lease.entry] += 1
        return tries

    async def vouch(self, teacher: str, digest: str) -> str:
        """See Bus.vouch."""
        return (await self._reach()).teachers.setdefault(teacher, digest)

    async def weights_after(self, entry: str, wait_s: float) -> list[tuple[str, bytes]]:
        """See Bus.weights_after."""
        after = int(entry.partition("-")[0])
        return await self._wait_for(lambda server: [one for one in server.weights if int(one[0].partition("-")[0]) > after], wait_s)

    async def beat(self, name: str, report: bytes, ttl_s: float) -> None:
        """See Bus.beat."""
        server = await self._reach()
        server.reports[name] = (report, server.clock() + ttl_s)

    async def reports(self) -> dict[str, bytes]:
        """See Bus.reports."""
        server = await self._reach()
        server.reports = {name: kept for name, kept in server.reports.items() if kept[1] > server.clock()}
        return {name: report for name, (report, _) in server.reports.items()}

    async def claim(self, term: int, owner: str, lease_s: float, take_over: bool) -> None:
        """See Bus.claim."""
        server = await self._reach()
        if term <= server.term:
            raise Superseded(f"a learner of a higher term ({server.term}) has taken over this run: this one stops")
        holder = self._holder()
        if holder not in {None, owner} and not take_over:
            raise LearnerActive(f"another learner ({holder}) works on this run: stop it, or start this one with --take-over")
        server.learner = (owner, server.clock() + lease_s, term)
        server.term = term

    async def hold(self, term: int, owner: str, lease_s: float) -> None:
        """See Bus.hold."""
        server = await self._reach()
        server.fence(term)
        holder = self._holder()
        if holder not in {None, owner} and server.learner and server.learner[2] >= term:
            raise Superseded(f"a learner of a higher term (by {holder}) has taken over this run: this one stops")
        server.learner = (owner, server.clock() + lease_s, term)

    async def resign(self, term: int, owner: str) -> None:  # noqa: ARG002 - the owner alone decides
        """See Bus.resign."""
        server = await self._reach()
        if self._holder() == owner:
            server.learner = None

    def _holder(self) -> str | None:
        learner = self._server.learner
        return learner[0] if learner and learner[1] > self._server.clock() else None

    async def admit(self, term: int, first: int, tickets: Sequence[tuple[int, bytes]]) -> int:
        """See Bus.admit."""
        server = await self._reach()
        server.fence(term)
        if server.cursor == first:
            server.demand_room()
            for seq, ticket in tickets:
                server.readmit(seq, ticket, self._name)
            server.cursor = first + len(tickets)
        return server.cursor

    async def readmit(self, term: int, tickets: Sequence[tuple[int, bytes]]) -> int:
        """See Bus.readmit."""
        server = await self._reach()
        server.fence(term)
        server.demand_room()
        added = [seq for seq, ticket in tickets if server.readmit(seq, ticket, self._name)]
        server.cursor = max([server.cursor, *(seq + 1 for seq in added)])
        return len(added)

    async def settle(self, term: int, leases: Sequence[Lease]) -> int:
        """See Bus.settle."""
        server = await self._reach()
        server.fence(term)
        settled = 0
        for lease in leases:
            if server.names(lease):
                server.remove(lease.topic, lease.entry)
                del server.live[lease.seq]
                settled += 1
        server.applied += settled
        return settled

    async def discard(self, term: int, leases: Sequence[Lease]) -> None:
        """See Bus.discard."""
        server = await self._reach()
        server.fence(term)
        for lease in leases:
            named = server.names(lease)
            if not named or lease.seq in server.dead:
                server.remove(lease.topic, lease.entry)
                if named:
                    del server.live[lease.seq]

    async def publish(self, term: int, manifest: bytes, keep: int) -> str:
        """See Bus.publish."""
        server = await self._reach()
        server.fence(term)
        server.weights = [*server.weights, (server.name(), bytes(manifest))][-keep:]
        server.announce()
        return server.weights[-1][0]

    async def live(self) -> dict[int, LiveEntry]:
        """See Bus.live."""
        return dict((await self._reach()).live)

    async def reconcile(
        self, term: int, cursor: int, applied: int, gone: Container[int], dead: Mapping[int, str], lives: Mapping[int, int]
    ) -> int:
        """See Bus.reconcile."""
        server = await self._reach()
        server.fence(term)
        for seq in [seq for seq in {*server.live, *server.dead} if seq in gone]:
            server.dead.pop(seq, None)
            self._withdraw(seq)
        for seq, life in lives.items():
            if life > server.lives.get(seq, 0):
                server.revive(seq, life)
        for seq, reason in dead.items():
            if lives.get(seq, 0) < server.lives.get(seq, 0):
                continue
            place, payload = self._withdraw(seq)
            server.dead.setdefault(seq, DeadLetter(seq, place.attempt if place else 0, reason, payload))
        for entry in [*server.topics.get(SCORED, {}).values(), *server.topics.get(EVALUATED, {}).values()]:
            entry.owner = FREE if entry.owner not in (None, self._name) else entry.owner
        server.incarnation = server.incarnation or uuid.uuid4().hex
        server.reconciled = 0
        server.applied = applied
        server.cursor = max(server.cursor, cursor)
        return server.cursor

    def _withdraw(self, seq: int) -> tuple[LiveEntry | None, bytes]:
        """Takes a seq out of its topic and of `live`; returns where it was, and its payload."""
        place = self._server.live.pop(seq, None)
        if place is None:
            return None, b""
        entry = self._server.topics[place.topic][place.entry]
        self._server.remove(place.topic, place.entry)
        return place, entry.payload

    async def reconciled(self, term: int, incarnation: str) -> None:
        """See Bus.reconciled."""
        (await self._reach()).mark_reconciled(term, incarnation)

    async def state(self) -> BusState:
        """See Bus.state."""
        return (await self._reach()).state()

    async def ask(self, term: int, topic: str, payloads: Sequence[tuple[int, bytes]]) -> None:
        """See Bus.ask."""
        server = await self._reach()
        server.fence(term)
        server.demand_room()
        for index, payload in payloads:
            server.add(topic, index, 0, payload, self._name)

    async def clear(self, term: int, topic: str) -> None:
        """See Bus.clear."""
        server = await self._reach()
        server.fence(term)
        server.topics[topic] = {}

    async def answer(self, term: int, leases: Sequence[Lease]) -> None:
        """See Bus.answer."""
        server = await self._reach()
        server.fence(term)
        for lease in leases:
            server.remove(lease.topic, lease.entry)

    async def aclose(self) -> None:
        """See Bus.aclose."""
