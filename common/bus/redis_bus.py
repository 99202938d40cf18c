"""The bus on any server of the Redis 6.2 command set: every promise of common/bus/base.py is kept by a script in scripts/."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from common.bus.answer_limit import AnswerTooLong
from common.bus.base import Burial, Lease, Move, Outcome, Retry
from common.bus.redis_calls import pieces, record
from common.bus.redis_client import RedisClient
from common.bus.redis_learner import LearnerCalls

_BLOCK_S = 0.25
"""Longest wait on the server at a time: released and expired entries wake nobody, so a waiting worker looks for them in between."""
_FIELDS = [b"seq", b"attempt", b"payload", b"by"]
_LONGEST_NAME = 256
_OUTCOMES: tuple[Outcome, Outcome] = ("refused", "done")


class RedisBus(LearnerCalls):
    """One worker's bus. `name` is unique to its process."""

    def __init__(self, client: RedisClient, *, run: str, name: str, lease_s: float, largest_entry: int = 1 << 29) -> None:
        super().__init__(client, run=run, name=name)
        self._largest_entry = largest_entry
        self._lease_s = lease_s
        self._next_sweep: dict[tuple[str, ...], float] = {}  # by topics: each of several tasks that lease looks after its own
        self._losses: dict[tuple[str, ...], int] = {}
        self._held: set[tuple[str, str]] = set()  # leased and not finished

    async def lease(self, topics: Sequence[str], count: int, wait_s: float) -> list[Lease]:
        """See Bus.lease."""
        limit = time.monotonic() + wait_s
        while True:
            leases = await self._poll(topics, count)
            left = limit - time.monotonic()
            if leases or left <= 0:
                return leases
            leases = await self._wait(topics, count, min(left, _BLOCK_S))
            if leases:
                return leases

    async def _poll(self, topics: Sequence[str], count: int) -> list[Lease]:
        now, whose = time.monotonic(), tuple(topics)
        sweep = now >= self._next_sweep.get(whose, 0.0)
        if sweep:
            self._next_sweep[whose] = now + self._lease_s / 4
        losses = self._client.losses
        reclaim = losses != self._losses.get(whose, 0)  # a lost reply, or a server that came back, may have left entries under our name
        held = [f"{topic} {entry}" for topic, entry in self._held] if reclaim else []
        options = (count, max(1, int(self._lease_s * 1000)), int(sweep), int(reclaim), self._largest_entry, len(topics))
        rows = await self._script("lease", *options, *topics, *held)
        self._losses[whose] = losses
        leases = self._keep([_lease(row[0].decode(), row[1], row[2], row[3]) for row in rows])
        if losses != self._client.losses and len(leases) < count:  # the reply that was lost may have held entries
            leases += await self._poll(topics, count - len(leases))
        return leases

    async def _wait(self, topics: Sequence[str], count: int, wait_s: float) -> list[Lease]:
        block = max(1, int(wait_s * 1000))
        streams = [self._key(topic) for topic in topics]
        head = ("XREADGROUP", "GROUP", "workers", self._name, "COUNT", count, "BLOCK", block, "STREAMS")
        try:
            found = await self._client.command(*head, *streams, *(">" for _ in streams), wait_s=wait_s)
        except ResponseError:  # NOGROUP: the server came back empty; the next look makes the groups
            return []
        except AnswerTooLong:
            self._client.losses += 1  # what it held is under our name now: the next look throws it out
            return []
        by_key = {stream.encode(): topic for stream, topic in zip(streams, topics, strict=True)}
        rows = [(by_key[key], row) for key, rows in found or () for row in rows]
        sound = [(topic, row) for topic, row in rows if self._is_sound(row[1])]
        self._client.losses += len(sound) < len(rows)
        leases = self._keep([_lease(topic, row[0], 1, row[1]) for topic, row in sound])
        if len(leases) > count:  # COUNT holds for each stream by itself
            await self.release(leases[count:])
        return leases[:count]

    def _is_sound(self, fields: list[bytes]) -> bool:
        """As lease.lua has it."""
        names, values = fields[::2], fields[1::2]
        is_ours = names in (_FIELDS, _FIELDS[:3]) and len(values) == len(names) and len(b"".join(values[3:])) <= _LONGEST_NAME
        return is_ours and all(number.isdigit() and len(number) <= 18 for number in values[:2]) and len(values[2]) <= self._largest_entry

    async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """See Bus.renew."""
        if not leases:
            return []
        answers = await self._script("renew", *_places(leases))
        self._finish(lease for lease, mine in zip(leases, answers, strict=True) if not mine)
        return [lease for lease, mine in zip(leases, answers, strict=True) if mine]

    async def release(self, leases: Sequence[Lease]) -> None:
        """See Bus.release."""
        self._finish(leases)
        if leases:
            await self._script("release", *_places(leases))

    async def hand_off(self, moves: Sequence[Move]) -> list[Outcome]:
        """See Bus.hand_off."""
        outcomes: list[Outcome] = []
        for some in pieces(moves, lambda move: len(move.payload)):
            arguments = [a for m in some for a in (*record(m.lease), m.topic, m.payload)]
            outcomes += [_OUTCOMES[done] for done in await self._script("hand_off", self._number(), *arguments)]
        self._finish([move.lease for move in moves])
        return outcomes

    async def retry(self, retries: Sequence[Retry], max_attempts: int) -> list[Outcome]:
        """See Bus.retry."""
        outcomes: list[Outcome] = []
        for some in pieces(retries, lambda retry: len(retry.ticket)):
            arguments = [a for r in some for a in (*record(r.lease), r.ticket, r.reason)]
            outcomes += [_OUTCOMES[done] for done in await self._script("retry", self._number(), max_attempts, *arguments)]
        self._finish([retry.lease for retry in retries])
        return outcomes

    async def bury(self, burials: Sequence[Burial]) -> list[Outcome]:
        """See Bus.bury."""
        outcomes: list[Outcome] = []
        for some in pieces(burials, lambda burial: len(burial.reason)):
            arguments = [a for b in some for a in (*record(b.lease), b.reason)]
            outcomes += [_OUTCOMES[done] for done in await self._script("bury", self._number(), *arguments)]
        self._finish([burial.lease for burial in burials])
        return outcomes

    async def begin_alone(self, lease: Lease) -> int:
        """See Bus.begin_alone."""
        return int(await self._script("begin_alone", self._number(), *record(lease)))

    async def vouch(self, teacher: str, digest: str) -> str:
        """See Bus.vouch."""
        first: bytes = await self._script("vouch", teacher, digest)
        return first.decode()

    async def weights_after(self, entry: str, wait_s: float) -> list[tuple[str, bytes]]:
        """See Bus.weights_after."""
        block = ("BLOCK", max(1, int(wait_s * 1000))) if wait_s > 0 else ()
        found = await self._client.command("XREAD", *block, "STREAMS", self._key("weights"), entry, wait_s=wait_s)
        return [(row[0].decode(), row[1][1]) for _, rows in found or () for row in rows]

    async def beat(self, name: str, report: bytes, ttl_s: float) -> None:
        """See Bus.beat. Works on a full server too: it must go on saying who can still empty it."""
        await self._script("beat", name, report, max(1, int(ttl_s * 1000)))

    async def reports(self) -> dict[str, bytes]:
        """See Bus.reports."""
        rows: list[bytes] = await self._script("reports")
        return {name.decode(): report for name, report in zip(rows[::2], rows[1::2], strict=True)}

    async def settle(self, term: int, leases: Sequence[Lease]) -> int:
        """See Bus.settle."""
        settled = await super().settle(term, leases)
        self._finish(leases)
        return settled

    async def discard(self, term: int, leases: Sequence[Lease]) -> None:
        """See Bus.discard."""
        await super().discard(term, leases)
        self._finish(leases)

    async def answer(self, term: int, leases: Sequence[Lease]) -> None:
        """See Bus.answer."""
        if leases:
            await self._script("answer", term, *_places(leases))
        self._finish(leases)

    def _keep(self, leases: list[Lease]) -> list[Lease]:
        self._held.update((lease.topic, lease.entry) for lease in leases)
        return leases

    def _finish(self, leases: Iterable[Lease]) -> None:
        self._held.difference_update((lease.topic, lease.entry) for lease in leases)


def _places(leases: Sequence[Lease]) -> list[str]:
    return [part for lease in leases for part in (lease.topic, lease.entry)]


def _lease(topic: str, entry: bytes, deliveries: int, fields: list[Any]) -> Lease:
    """`fields` are names and values in turn, as XADD got them (Any: redis-py does not type replies)."""
    seq, attempt, payload, *by = fields[1::2]
    return Lease(topic, entry.decode(), int(seq), int(attempt), payload, deliveries, b"".join(by).decode(errors="replace"))
