"""A run that goes away and comes back is followed; letters, which carry their samples, are read only where there are others than before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.bus.base import BusState, DeadLetter
from common.errors import BusUnreachable
from common.pulse import Report
from deploy.dashboard import live
from deploy.dashboard.look import Look
from deploy.snapshot import Snapshot


class FakeBus:
    """Answers unless `away`; says how often letters were read."""

    def __init__(self) -> None:
        self.away = False
        self.dead = 0
        self.read = 0

    async def reports(self) -> dict[str, bytes]:
        if self.away:
            raise BusUnreachable("away")
        return {"learner-1": Report("learner", "learner-1", at=1.0, gauges={"step": 3}).encode()}

    async def state(self) -> BusState:
        if self.away:
            raise BusUnreachable("away")
        return BusState("i", 1, 9, 9 - self.dead, 0, self.dead, {}, {"tickets": 4}, {"tickets": 1}, 0, oldest_s={"tickets": 2.5})

    async def dead_letters(self) -> dict[int, DeadLetter]:
        self.read += 1
        return {seq: DeadLetter(seq, 1, "poison", b"x") for seq in range(self.dead)}


@asynccontextmanager
async def following(bus: FakeBus) -> AsyncIterator[live.Live]:
    @asynccontextmanager
    async def reach() -> AsyncIterator[Any]:
        if bus.away:
            raise BusUnreachable("nobody answers")
        yield bus

    followed = live.Live(reach, period_s=0.001)
    task = asyncio.create_task(followed.run())
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_run_that_goes_away_is_said_to_be_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_AGAIN_S", 0.001)
    monkeypatch.setattr(live, "_GONE_AFTER_S", 0.05)
    bus = FakeBus()
    async with following(bus) as followed:
        await until(lambda: followed.document)
        assert followed.document["learner"] == {"step": 3}
        bus.away = True
        await until(lambda: followed.away == "nobody answers")
        assert followed.document is None
        bus.away = False
        await until(lambda: followed.document and followed.document["answers"])


async def test_letters_are_read_when_their_number_changes() -> None:
    bus = FakeBus()
    async with following(bus) as followed:
        await until(lambda: followed.dead == {"count": 0, "letters": []})
        assert bus.read == 0
        bus.dead = 2
        await until(lambda: followed.dead["count"] == 2)
        assert followed.dead["letters"][1] == {"seq": 1, "attempt": 1, "reason": "poison"}
        looks = len(followed.document["history"])
        await until(lambda: len(followed.document["history"]) > looks + 3)
        assert bus.read == 1


def test_a_heartbeat_s_age_is_told_by_our_own_clock_whatever_the_worker_s_says() -> None:
    look = Look()
    for at in (1e12, 1e12):  # a clock far ahead of ours
        look.show(Snapshot(0.0), Snapshot(1.0, {"producer-1": Report("producer", "producer-1", at=at)}))
    assert look.document is not None
    (worker,) = look.document["workers"]
    assert 0 <= worker["heard_s"] < 60
    assert look.document["queues"] == []
    assert look.document["ledger"] is None
