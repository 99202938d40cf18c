"""A producer beside a full server and beside a damaged weight version: it waits by name, loses nothing, and goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from test_producer_service import FIRST, Stage

from common.bus.base import Lease, rollouts
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
