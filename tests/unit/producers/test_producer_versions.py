"""What another version of Reflux wrote stops a producer; nothing of it is given up."""

import asyncio

import pytest
from test_producer_service import FIRST, Stage

from common.bus.base import TICKETS
from common.codec import encode
from common.errors import OtherSchema
from common.messages import Version, WeightManifest
from producers import follower


async def test_a_ticket_of_another_version_ends_the_producer_and_stays() -> None:
    stage = Stage()
    await stage.publish(FIRST)
    await stage.admit(2)
    for entry in stage.server.topics[TICKETS].values():
        entry.payload = entry.payload[:4] + b"\x03\x00" + entry.payload[6:]
    with pytest.raises(ExceptionGroup) as caught:
        async with stage.running() as life:
            await asyncio.wait({life}, timeout=60)
    assert caught.group_contains(OtherSchema, match="run the same version everywhere")
    assert (await stage.backlog(TICKETS), await stage.learner.dead_letters()) == (2, {})


async def test_weights_of_a_server_that_came_back_empty_with_its_clock_behind_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "_SILENT_S", 0.0)
    stage = Stage()
    stage.server.weights = [("900-0", encode(WeightManifest(FIRST, "full", "d", (), {})))]
    newer = Version(FIRST.term + 1, 0)
    async with stage.running() as life, asyncio.timeout(60):
        while stage.engine.version != FIRST:
            assert not life.done()
            await asyncio.sleep(0.01)
        stage.server.weights = [("7-0", encode(WeightManifest(newer, "full", "d", (), {})))]
        while stage.engine.version != newer:
            assert not life.done()
            await asyncio.sleep(0.01)
