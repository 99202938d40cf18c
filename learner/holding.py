"""The scored rollouts that the learner leases and has not journaled.

Guarantees: never two of one seq, never one that is applied or dead (P2); what cannot be read, or lacks a score, goes to the dead letters
with its reason (P8); everything here is renewed by the lease keeper until it is settled, sampled again or let go.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from common.bus.base import Burial, Bus, Lease, Retry
from common.codec import decode, encode
from common.errors import BusFull, OtherSchema, WireError
from common.leases import LeaseKeeper
from common.messages import ScoredRollout, Ticket, Version
from common.patience import until_mended
from common.pulse import Pulse
from learner.batch import Held
from learner.deaths import hear_of_deaths
from learner.line import Line

_log = logging.getLogger(__name__)


class Holding:
    """What is held, by seq."""

    def __init__(self, *, bus: Bus, keeper: LeaseKeeper, pulse: Pulse, line: Line) -> None:
        self._bus = bus
        self._keeper = keeper
        self._pulse = pulse
        self._line = line
        self.held: dict[int, Held] = {}

    async def take_in(self, leases: Sequence[Lease]) -> None:
        """Sorts freshly leased entries: held, or done with."""
        self._keeper.hold(leases)
        applied = [lease for lease in leases if lease.seq in self._line]
        if any(lease.seq in self._line.dead for lease in leases):  # it may have been revived
            await hear_of_deaths(self._bus, self._line)
        dead = [lease for lease in leases if lease.seq in self._line.dead]
        rest = [lease for lease in leases if lease.seq not in self._line and lease.seq not in self._line.dead]
        if applied:
            await self._settle_again(applied)
        if dead:
            await self._bury([Burial(lease, self._line.dead[lease.seq]) for lease in dead])
        doubtful = [lease for lease in rest if self._is_other_entry(lease)]
        if doubtful:
            rest = await self._resolve(rest)
        await self._hold(rest)

    def drop_lost(self) -> None:
        """Forgets what another worker has taken over."""
        for seq, one in list(self.held.items()):
            if not self._keeper.holds(one.lease):
                del self.held[seq]

    def remove(self, batch: Sequence[Held]) -> None:
        """These are journaled; their leases stay until they are settled."""
        for one in batch:
            del self.held[one.seq]

    async def give_up_dead(self) -> None:
        """What has died meanwhile is not trained on."""
        dead = [one for one in self.held.values() if one.seq in self._line.dead]
        self.remove(dead)
        if dead:
            await self._bury([Burial(one.lease, self._line.dead[one.seq]) for one in dead])

    async def let_go(self) -> None:
        """Everything back to the bus: whoever leases next gets it at once."""
        leases = [one.lease for one in self.held.values()]
        self.held.clear()
        self._keeper.drop(leases)
        if leases:
            await self._bus.release(leases)

    async def sample_again(self, again: Sequence[Held], version: Version, max_attempts: int) -> None:
        """Back to `tickets`, for the newest weights or newer."""
        retries = [Retry(one.lease, encode(_next_attempt(one, version)), "stale") for one in again]
        self.remove(again)
        with self._keeper.leaving([one.lease for one in again]):
            await until_mended(self._pulse, "server memory", lambda: self._bus.retry(retries, max_attempts), BusFull)
        self._pulse.add(retried_stale=len(again))

    def _is_other_entry(self, lease: Lease) -> bool:
        known = self.held.get(lease.seq)
        return known is not None and known.lease.entry != lease.entry

    async def _settle_again(self, leases: Sequence[Lease]) -> None:
        """Their step is journaled: count those that the bus still has as live, delete the others."""
        with self._keeper.leaving(leases):
            await self._bus.settle(self._line.term, leases)
            await self._bus.discard(self._line.term, leases)
        self._pulse.add(discarded_applied=len(leases))

    async def _bury(self, burials: Sequence[Burial]) -> None:
        with self._keeper.leaving([one.lease for one in burials]):
            outcomes = await self._bus.bury(burials)
        refused = [one.lease for one, outcome in zip(burials, outcomes, strict=True) if outcome == "refused"]
        if refused:
            await self._bus.discard(self._line.term, refused)
        self._pulse.add(buried=len(burials))

    async def _resolve(self, leases: Sequence[Lease]) -> list[Lease]:
        """Two entries of one seq (a rollback brings that about): the one that `live` names stays, the other goes."""
        live = await self._bus.live()
        rivals = [self.held.pop(lease.seq).lease for lease in leases if self._is_other_entry(lease)]
        both = [*leases, *rivals]
        named = [lease for lease in both if lease.seq in live and live[lease.seq].entry == lease.entry]
        others = [lease for lease in both if lease not in named]
        await self._bus.discard(self._line.term, others)
        self._keeper.drop(others)
        return named

    async def _hold(self, leases: Sequence[Lease]) -> None:
        unusable: list[Burial] = []
        with self._pulse.cpu("codec"):
            for lease in leases:
                try:
                    self.held[lease.seq] = _read(lease)
                except OtherSchema:
                    raise
                except (WireError, ValueError) as error:
                    unusable.append(Burial(lease, f"unusable: {error}"))
        if unusable:
            _log.warning("scored rollouts that cannot be used", extra={"count": len(unusable), "first": unusable[0].reason})
            await self._bury(unusable)


def _read(lease: Lease) -> Held:
    scored = decode(lease.payload, ScoredRollout)
    assert isinstance(scored, ScoredRollout)
    if scored.remaining or not scored.scores:
        raise ValueError(f"{len(scored.remaining)} teachers have not scored it")
    if scored.rollout.ticket.seq != lease.seq:
        raise ValueError(f"it carries seq {scored.rollout.ticket.seq}")
    return Held(lease, scored)


def _next_attempt(one: Held, version: Version) -> Ticket:
    old = one.scored.rollout.ticket
    return Ticket(old.seq, one.lease.attempt + 1, old.prompt_id, old.prompt_ids, old.sampling, old.slip, version, old.metadata)
