"""The learner's part of the bus, and what anybody may look up. Every script of the learner refuses a lower term (Superseded)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Container, Mapping, Sequence

from common.bus.base import BusState, Lease, LiveEntry
from common.bus.redis_calls import MOST_ENTRIES, pieces, record
from common.bus.redis_operator import OperatorCalls, lives_of


class LearnerCalls(OperatorCalls):
    """Calls that carry a term, and looks at the whole run."""

    async def claim(self, term: int, owner: str, lease_s: float, take_over: bool) -> None:
        """See Bus.claim."""
        await self._script("claim", self._number(), term, owner, int(lease_s * 1000), int(take_over))

    async def hold(self, term: int, owner: str, lease_s: float) -> None:
        """See Bus.hold."""
        await self._script("hold", term, owner, int(lease_s * 1000))

    async def resign(self, term: int, owner: str) -> None:  # noqa: ARG002 - the owner alone decides
        """See Bus.resign."""
        await self._script("resign", owner)

    async def admit(self, term: int, first: int, tickets: Sequence[tuple[int, bytes]]) -> int:
        """See Bus.admit."""
        cursor = first
        for some in pieces(tickets, _ticket_size) if tickets else [tickets]:
            reached = await self._script("admit", self._number(), term, cursor, *(a for ticket in some for a in ticket))
            if reached != cursor + len(some):
                return int(reached)
            cursor = reached
        return cursor

    async def readmit(self, term: int, tickets: Sequence[tuple[int, bytes]]) -> int:
        """See Bus.readmit."""
        added = 0
        for some in pieces(tickets, _ticket_size):
            added += await self._script("readmit", self._number(), term, *(a for ticket in some for a in ticket))
        return added

    async def settle(self, term: int, leases: Sequence[Lease]) -> int:
        """See Bus.settle."""
        settled = 0
        for begin in range(0, len(leases), MOST_ENTRIES):
            some = leases[begin : begin + MOST_ENTRIES]
            settled += await self._script("settle", self._number(), term, *(a for lease in some for a in record(lease)))
        return settled

    async def discard(self, term: int, leases: Sequence[Lease]) -> None:
        """See Bus.discard."""
        if leases:
            await self._script("discard", term, *(a for lease in leases for a in record(lease)))

    async def publish(self, term: int, manifest: bytes, keep: int) -> str:
        """See Bus.publish."""
        entry: bytes = await self._script("publish", self._number(), term, keep, manifest)
        return entry.decode()

    async def live(self) -> dict[int, LiveEntry]:
        """See Bus.live."""
        rows: list[bytes] = await self._client.command("HGETALL", self._key("live"))
        return {int(seq): _live_entry(text) for seq, text in zip(rows[::2], rows[1::2], strict=True)}

    async def reconcile(
        self, term: int, cursor: int, applied: int, gone: Container[int], dead: Mapping[int, str], lives: Mapping[int, int]
    ) -> int:
        """See Bus.reconcile. Only what the server lacks travels, and the seqs that it knows: `gone` may hold the whole run."""
        live, buried, rows = await self._script("numbers")
        live, buried, theirs = {*map(int, live)}, {*map(int, buried)}, lives_of(rows)
        known = [seq for seq in live | buried if seq in gone]
        newer = {seq: life for seq, life in lives.items() if life > theirs.get(seq, 0)}
        died = [seq for seq in dead if seq not in buried or seq in live or seq in newer]
        head = (term, cursor, applied, uuid.uuid4().hex, len(known), len(newer))
        deaths = [a for seq in died for a in (seq, lives.get(seq, 0), dead[seq])]
        return int(await self._script("reconcile", *head, *known, *(a for one in newer.items() for a in one), *deaths))

    async def reconciled(self, term: int, incarnation: str) -> None:
        """See Bus.reconciled."""
        await self._script("reconciled", term, incarnation)

    async def state(self) -> BusState:
        """See Bus.state."""
        ledger, live, dead, retried, topics, server, memory, disk = await self._script("state")
        term, cursor, applied, key = ledger
        names = [topic.decode() for topic in topics[::4]]
        now_ms = int(_info(server, "server_time_usec")) / 1000
        return BusState(
            incarnation=f"{_info(server, 'run_id')}:{(key or b'').decode()}",
            term=int(term or 0),
            cursor=int(cursor or 0),
            live=live,
            applied=int(applied or 0),
            dead=dead,
            retried={reason.decode(): int(count) for reason, count in zip(retried[::2], retried[1::2], strict=True)},
            backlog=dict(zip(names, topics[1::4], strict=True)),
            leased=dict(zip(names, topics[2::4], strict=True)),
            used_bytes=int(_info(memory, "used_memory")),
            obstacle=_obstacle(memory, disk),
            oldest_s={name: max(0.0, now_ms - _made_ms(entry)) / 1000 for name, entry in zip(names, topics[3::4], strict=True) if entry},
        )

    async def ask(self, term: int, topic: str, payloads: Sequence[tuple[int, bytes]]) -> None:
        """See Bus.ask."""
        for some in pieces(payloads, _ticket_size):
            await self._script("ask", self._number(), term, topic, *(a for question in some for a in question))

    async def clear(self, term: int, topic: str) -> None:
        """See Bus.clear."""
        await self._script("clear", term, topic)


def _obstacle(memory: bytes, disk: bytes) -> str:
    if _info(disk, "aof_last_write_status") == "err":
        return "the server cannot write its append-only file: make room on its disk"
    used, most = int(_info(memory, "used_memory")), int(_info(memory, "maxmemory") or 0)
    return f"the server's memory is used up ({used} of {most} bytes): raise its maxmemory" if most and used >= most else ""


def _made_ms(entry: bytes) -> int:
    return int(entry.partition(b"-")[0])


def _ticket_size(ticket: tuple[int, bytes]) -> int:
    return len(ticket[1])


def _live_entry(text: bytes) -> LiveEntry:
    entry, attempt, topic = text.decode().split(" ", 2)
    return LiveEntry(topic, entry, int(attempt))


def _info(section: bytes, name: str) -> str:
    found = re.search(rf"^{name}:(.*?)\r?$", section.decode(), re.MULTILINE)
    return found.group(1) if found else "0"
