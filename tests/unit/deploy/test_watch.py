import asyncio
from collections.abc import Mapping

from common.bus.base import BusState
from common.errors import BusUnreachable
from common.pulse import Report
from deploy.snapshot import Snapshot
from deploy.watch import Watch


class FakeBus:
    """Counts up one applied sample a look; does not answer when `away`."""

    def __init__(self) -> None:
        self.away = False
        self.applied = 0
        self.scored: dict[str, float] = {}

    async def reports(self) -> Mapping[str, bytes]:
        if self.away:
            raise BusUnreachable("away")
        told = {name: Report(role="scorer", name=name, counters={"samples": samples}) for name, samples in self.scored.items()}
        return {name: report.encode() for name, report in {"learner-1": Report(role="learner", name="learner-1"), **told}.items()}

    async def state(self) -> BusState:
        self.applied += 1
        return BusState("i", 1, 64, 64 - self.applied, self.applied, 0, {}, {}, {}, 0)


def watching() -> tuple[FakeBus, Watch, list[Snapshot]]:
    bus, seen = FakeBus(), list[Snapshot]()
    return bus, Watch(bus=bus, period_s=0.001, show=lambda _, after: seen.append(after)), seen  # type: ignore[arg-type]


async def test_every_look_is_shown_and_progress_follows_the_ledger() -> None:
    _, watch, seen = watching()
    assert watch.progress == (0, 0, 0, 0)
    await watch.look()
    first = watch.progress
    await watch.look()
    assert (first, watch.progress) == ((1, 64, 0, 0), (2, 64, 0, 0))
    assert [snapshot.state.applied for snapshot in seen if snapshot.state] == [1, 2]


async def test_a_server_that_does_not_answer_is_shown_and_takes_no_progress_away() -> None:
    bus, watch, seen = watching()
    await watch.look()
    bus.away = True
    await watch.look()
    assert seen[-1].state is None
    assert "learner-1" in seen[-1].reports
    assert watch.progress == (1, 64, 0, 0)


async def test_hand_offs_of_a_worker_that_dies_again_and_again_are_progress_and_its_deaths_are_none() -> None:
    bus, watch, _ = watching()
    totals = []
    for told in ({"scorer-1": 100.0}, {}, {}, {"scorer-1": 0.0}, {"scorer-1": 40.0}, {"scorer-2": 5.0}):
        bus.scored = told
        await watch.look()
        totals.append(watch.progress[-1])
    assert totals == [100, 100, 100, 100, 140, 145]


async def test_it_looks_until_it_is_cancelled() -> None:
    _, watch, seen = watching()
    task = asyncio.create_task(watch.run(), name="watch")
    async with asyncio.timeout(60):
        while len(seen) < 3:
            await asyncio.sleep(0.001)
    task.cancel()
