"""A scorer beside a full server: it waits by name, loses nothing, and goes on; without work it does not spin."""

import asyncio
import time

from scorer_fakes import FakeBus, FakeTeacher, Server, config_of, serving, worker_of
from test_scorer_service import filled, scored

from common.errors import BusFull


class FullBus(FakeBus):
    """Refuses hand-offs while the server is full, and changes nothing."""

    full = True

    async def hand_off(self, moves):
        if self.full:
            raise BusFull("the server has no memory left")
        return await super().hand_off(moves)


class CountingBus(FakeBus):
    """Counts the leases asked for."""

    asked = 0

    async def lease(self, topics, count, wait_s):
        self.asked += 1
        return await super().lease(topics, count, wait_s)


async def test_a_full_server_is_waited_for_and_every_score_arrives():
    server = filled(5)
    worker = worker_of(server, config_of())
    worker.bus.__class__ = FullBus
    async with serving(worker, FakeTeacher("t")):
        async with asyncio.timeout(60):
            while worker.pulse.report().gauges.get("obstacle") != "the server has no memory left":
                await asyncio.sleep(0.01)
        assert "waits for server memory" in worker.pulse.report().state
        assert not scored(server)
        worker.bus.full = False
        async with asyncio.timeout(60):
            await server.until("scored", 5)
    assert set(scored(server)) == set(range(5))
    assert worker.pulse.report().counters["refused"] == 0


async def test_a_scorer_without_rollouts_does_not_spin():
    worker = worker_of(Server(), config_of())
    worker.bus.__class__ = CountingBus
    began = time.monotonic()
    async with serving(worker, FakeTeacher("t")):
        async with asyncio.timeout(60):
            while worker.bus.asked < 10:
                await asyncio.sleep(0.01)
    beats = (time.monotonic() - began) / worker.config.service.heartbeat_s
    assert worker.bus.asked <= 5 + beats, "it asks once a heartbeat, and waits on the server in between"
