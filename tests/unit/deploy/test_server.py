import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from common.bus import connect
from common.config import RunConfig, parse_config
from common.errors import BusError
from deploy.server import served

pytestmark = pytest.mark.redis


def config_in(directory: Path, **service: int) -> RunConfig:
    return parse_config(
        {
            "run": {"name": "r", "dir": str(directory)},
            "model": {"student": "s"},
            "teachers": {"t": {"path": "t"}},
            "data": {"prompts": "p"},
            "evaluation": {"prompts": 0},
            "service": service,
        }
    )


async def test_a_server_that_dies_comes_back_where_it_was_and_workers_go_on(tmp_path: Path) -> None:
    config, said = config_in(tmp_path), list[str]()
    async with served(config, said.append) as server, connect(config, name="worker") as bus:
        keeper = asyncio.create_task(server.keep(lambda: 0), name="server")
        await bus.claim(1, "me", 30.0, False)
        old = json.loads((config.directory / "bus.json").read_text())
        os.kill(old["pid"], signal.SIGKILL)
        async with asyncio.timeout(60):
            assert (await bus.state()).live == 0
            while json.loads((config.directory / "bus.json").read_text())["pid"] == old["pid"]:
                await asyncio.sleep(0.02)
        new = json.loads((config.directory / "bus.json").read_text())
        assert {key: new[key] for key in ("url", "port", "password")} == {key: old[key] for key in ("url", "port", "password")}
        assert said == ["the embedded server died and is started again"]
        async with asyncio.timeout(60):
            while not server.cpu_s():  # counted in ticks of the clock
                await bus.state()
        keeper.cancel()


@asynccontextmanager
async def murdered(config: RunConfig) -> AsyncIterator[None]:
    """The server, again and again."""

    async def murder() -> None:
        while True:
            with suppress(ProcessLookupError):
                os.kill(json.loads((config.directory / "bus.json").read_text())["pid"], signal.SIGKILL)
            await asyncio.sleep(0.05)

    murderer = asyncio.create_task(murder(), name="murderer")
    yield
    murderer.cancel()


async def test_a_server_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    config = config_in(tmp_path, restart_budget=2)
    async with served(config, lambda _: None) as server, murdered(config):
        with pytest.raises(BusError, match="keeps dying"):
            async with asyncio.timeout(60):
                await server.keep(lambda: 0)


async def test_a_server_that_keeps_dying_ends_no_run_that_gets_on(tmp_path: Path) -> None:
    config, progress, said = config_in(tmp_path, restart_budget=2), itertools.count(), list[str]()
    async with served(config, said.append) as server:
        keeper = asyncio.create_task(server.keep(lambda: next(progress)), name="server")
        async with asyncio.timeout(60):
            for deaths in range(1, 6):
                os.kill(server._server.pid, signal.SIGKILL)
                while len(said) < deaths or not server._server.alive:
                    await asyncio.sleep(0.02)
        assert not keeper.done()
        keeper.cancel()


async def test_a_foreign_server_is_left_alone(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    foreign = config.model_copy(update={"bus": config.bus.model_copy(update={"url": "redis://somewhere:1/0"})})
    async with served(foreign, lambda _: None) as server:
        await server.keep(lambda: 0)
        assert (server.own, server.cpu_s()) == (False, 0.0)
    assert not (config.directory / "bus.json").exists()
