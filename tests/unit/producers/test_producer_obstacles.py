"""A producer beside a full server and beside a damaged weight version: it waits by name, loses nothing, and goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
from test_producer_service import FIRST, Stage, _die_holding

from common.bus.base import Lease, rollouts
from common.bus.memory_server import MemoryServer
from common.messages import Version


async def waits_with_a_reason(stage: Stage, state: str) -> str:
    while (report := stage.worker.pulse.report()).state != state or not report.gauges.get("obstacle"):
        await asyncio.sleep(0.01)
    return str(report.gauges["obstacle"])


async def test_a_full_server_is_waited_for_and_every_rollout_arrives() -> None:
    stage = Stage()
    await stage.publish(FIRST)
    stage.engine.gate.clear()
    async with stage.running():
        await stage.admit(6)
        while stage.worker.keeper._held.keys() == set() or len(stage.worker.keeper) < 6:
            await asyncio.sleep(0.01)
        stage.server.max_bytes = 1
        stage.engine.gate.set()
        assert "no memory left" in await waits_with_a_reason(stage, "waits for server memory")
        assert len(stage.worker.keeper) == 6, "its leases are renewed meanwhile"
        stage.server.max_bytes = 0
        await stage.until(rollouts("t"), 6)
    assert "obstacle" not in stage.worker.pulse.report().gauges or not stage.worker.pulse.report().gauges["obstacle"]
    assert stage.worker.pulse.report().counters["refused"] == 0


async def test_a_version_that_cannot_be_read_is_in_the_status_until_one_can() -> None:
    stage = Stage()
    stage.store.damaged = {Version(1, 3)}
    await stage.publish(FIRST)
    async with stage.running():
        await stage.publish(Version(1, 3))
        while stage.worker.pulse.report().gauges.get("obstacle") != "a digest differs":
            await asyncio.sleep(0.01)
        assert stage.engine.version == FIRST
        stage.store.damaged = set()
        while stage.engine.version != Version(1, 3):
            await asyncio.sleep(0.01)
        while stage.worker.pulse.report().gauges["obstacle"]:
            await asyncio.sleep(0.01)


async def test_a_producer_without_tickets_does_not_spin() -> None:
    stage = Stage()
    await stage.publish(FIRST)
    async with stage.running():
        asked = 0
        lease = stage.worker.bus.lease

        async def counted(topics: Sequence[str], count: int, wait_s: float) -> list[Lease]:
            nonlocal asked
            asked += 1
            return await lease(topics, count, wait_s)

        stage.worker.bus.lease = counted  # type: ignore[method-assign]
        began = time.monotonic()
        while asked < 10:
            await asyncio.sleep(0.01)
        beats = (time.monotonic() - began) / stage.worker.config.service.heartbeat_s
        assert asked <= 5 + beats, "it asks once a heartbeat, and waits on the server in between"


@pytest.mark.parametrize("deaths", [0, 2], ids=["fresh tickets", "suspects"])
async def test_weights_that_stay_away_past_the_work_deadline_count_against_no_sample(deaths: int) -> None:
    now, wanted = [0.0], Version(1, 3)
    server = MemoryServer(clock=lambda: now[0])
    stages = [Stage(4, server, f"producer-{number}") for number in range(6)]
    for stage in stages:
        stage.worker.keeper._period, stage.worker.keeper._deadline = 0.01, 0.02
        stage.store.damaged = {wanted}
    await stages[0].publish(FIRST)
    await stages[0].publish(wanted)
    await stages[0].admit(3, wanted)
    await _die_holding(stages[0], range(deaths))
    stages[0].worker.bus._lease_s = 30.0
    given_back = [_releases(stage) for stage in stages]
    async with AsyncExitStack() as running:
        keepers = [asyncio.create_task(stage.worker.keeper.run()) for stage in stages]
        for stage in stages:
            await running.enter_async_context(stage.running())
        while sum(map(len, given_back)) < 30:
            assert not server.dead
            assert not any(keeper.done() for keeper in keepers)
            if not any(len(stage.worker.keeper) for stage in stages):
                now[0] += 31.0  # what was abandoned and not given back goes to others when its lease ends
            await asyncio.sleep(0.01)
        for stage in stages:
            stage.worker.keeper._deadline = 60.0
            stage.store.damaged = set()
        await stages[0].until(rollouts("t"), 3)
        for keeper in keepers:
            keeper.cancel()
    assert not server.dead


def _releases(stage: Stage) -> list[Lease]:
    """Grows by what the producer gives back."""
    given, release = list[Lease](), stage.worker.bus.release

    async def noted(leases: Sequence[Lease]) -> None:
        given.extend(leases)
        await release(leases)

    stage.worker.bus.release = noted  # type: ignore[method-assign]
    return given
