"""A worker renews exactly what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from common.bus.base import Lease
from common.errors import BusUnreachable
from common.leases import LeaseKeeper, quarantine_size


class FakeBus:
    """Remembers what was renewed and released; `stolen` are someone else's by now."""

    def __init__(self) -> None:
        self.renewed: list[list[int]] = []
        self.released: list[int] = []
        self.stolen: set[int] = set()
        self.away = False

    async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        self.renewed.append([lease.seq for lease in leases])
        return [lease for lease in leases if lease.seq not in self.stolen]

    async def release(self, leases: Sequence[Lease]) -> None:
        if self.away:
            raise BusUnreachable("gone")
        self.released += [lease.seq for lease in leases]


def _lease(seq: int) -> Lease:
    return Lease("tickets", f"{seq}-0", seq, 0, b"", 1)


def _keeper(bus: Any, **times: float) -> LeaseKeeper:
    return LeaseKeeper(bus, **{"lease_s": 0.03, "work_deadline_s": 60.0, **times})


async def _run_until(keeper: LeaseKeeper, condition: Any) -> None:
    task = asyncio.create_task(keeper.run())
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)
    task.cancel()


async def test_only_held_leases_are_renewed() -> None:
    bus = FakeBus()
    keeper = _keeper(bus)
    keeper.hold([_lease(1), _lease(2)])
    keeper.drop([_lease(1)])
    await _run_until(keeper, lambda: bus.renewed)
    assert bus.renewed[0] == [2]


async def test_a_stolen_lease_is_forgotten() -> None:
    bus = FakeBus()
    bus.stolen = {1}
    keeper = _keeper(bus)
    stolen, other = _lease(1), _lease(2)
    keeper.hold([stolen, other])
    await _run_until(keeper, lambda: not keeper.holds(stolen))
    assert keeper.holds(other)


def test_an_entry_that_is_leased_again_is_another_lease() -> None:
    keeper, before, after = _keeper(FakeBus()), _lease(1), _lease(1)
    keeper.hold([before])
    assert (keeper.holds(before), keeper.holds(after)) == (True, False)
    keeper.hold([after])
    assert (keeper.holds(before), keeper.holds(after)) == (False, True)


async def test_what_was_not_begun_by_its_deadline_is_given_back() -> None:
    bus = FakeBus()
    keeper = _keeper(bus, work_deadline_s=0.0)
    keeper.hold([_lease(1)])
    await _run_until(keeper, lambda: bus.released)
    assert (bus.renewed, bus.released, len(keeper)) == ([], [1], 0)


async def test_a_result_that_waits_for_the_server_has_no_deadline() -> None:
    bus = FakeBus()
    keeper = _keeper(bus, work_deadline_s=0.0)
    keeper.hold([_lease(1), _lease(2)])
    with keeper.leaving([_lease(1)]):
        await _run_until(keeper, lambda: len(bus.renewed) > 3)
    assert (bus.released, bus.renewed[-1], len(keeper)) == ([2], [1], 0)


@pytest.mark.parametrize("away", [False, True])
async def test_everything_goes_back_at_the_end(away: bool) -> None:
    bus = FakeBus()
    bus.away = away
    keeper = _keeper(bus)
    keeper.hold([_lease(1), _lease(2)])
    await keeper.release_all()
    assert sorted(bus.released) == ([] if away else [1, 2])
    assert len(keeper) == 0


def test_suspects_end_up_alone() -> None:
    assert [quarantine_size(n, 128) for n in (1, 2, 3, 4, 9)] == [128, 16, 2, 1, 1]


async def test_what_leaves_during_a_slow_renewal_was_not_taken_away(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(FakeBus):
        begun, go = asyncio.Event(), asyncio.Event()

        async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
            self.begun.set()
            await self.go.wait()
            return await super().renew(leases)

    bus = Slow()
    keeper = _keeper(bus)
    leaves, stays = _lease(1), _lease(2)
    keeper.hold([leaves, stays])
    renewing = asyncio.create_task(keeper.run())
    await bus.begun.wait()
    with keeper.leaving([leaves]):
        bus.stolen = {1}  # the server has handed it off, its answer is under way
        bus.go.set()
        while not bus.renewed:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
    renewing.cancel()
    assert not caplog.records
    assert (keeper.holds(leaves), keeper.holds(stays)) == (False, True)


async def test_a_hand_off_that_fails_leaves_the_lease_to_be_released() -> None:
    bus = FakeBus()
    keeper = _keeper(bus)
    keeper.hold([_lease(1)])
    with pytest.raises(BusUnreachable), keeper.leaving([_lease(1)]):
        raise BusUnreachable("gone")
    await keeper.release_all()
    assert bus.released == [1]


async def test_only_what_is_computed_past_the_deadline_hangs() -> None:
    hanging: list[int] = []
    keeper = LeaseKeeper(
        FakeBus(),  # type: ignore[arg-type]
        lease_s=0.03,
        work_deadline_s=0.1,
        hung=lambda leases: hanging.extend(lease.seq for lease in leases),
    )
    keeper.hold([_lease(1), _lease(2)])
    with keeper.computing([_lease(2)]):
        await _run_until(keeper, lambda: not len(keeper))
    assert hanging == [2]
