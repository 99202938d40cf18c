"""P7 in mid-run: the server accepts and answers no more; the learner says so within the outage timeout and ends."""

import asyncio
import os
import signal
import time
from functools import partial

import pytest
from learner_world import World

from common.bus import connect_url
from common.bus.embedded import EmbeddedServer
from common.errors import BusUnreachable


def first_cause(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def test_a_learner_whose_server_falls_silent_ends_with_its_name_in_time(tmp_path):
    async with EmbeddedServer.start(tmp_path / "server") as server:
        run = World(tmp_path, url=server.url)
        run.connect = lambda name: partial(connect_url, server.url, run="run", lease_s=0.6, outage_timeout_s=4.0)(name=name)
        life = asyncio.create_task(run.life())
        async with asyncio.timeout(60):
            while run.worker is None or not run.published():
                await asyncio.sleep(0.01)
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises((BusUnreachable, ExceptionGroup)) as caught:
            await asyncio.wait_for(life, 120)
        os.kill(server.pid, signal.SIGCONT)
        assert isinstance(first_cause(caught.value), BusUnreachable)
        assert "bus.outage_timeout_s" in str(first_cause(caught.value))
        assert time.monotonic() - began < 90
