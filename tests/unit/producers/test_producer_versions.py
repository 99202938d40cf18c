"""What another version of Reflux wrote stops a producer; nothing of it is given up."""

import asyncio

import pytest
from test_producer_service import FIRST, Stage

from common.bus.base import TICKETS
from common.errors import OtherSchema


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
