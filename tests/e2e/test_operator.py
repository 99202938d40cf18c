"""A person at work on a run that shares a server: pause, a look, dead letters, a killed supervisor, a fresh start, a purge."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from common.bus import connect_url
from common.bus.base import TICKETS, Burial, Bus
from common.bus.embedded import EmbeddedServer

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 100
Ask = Callable[[Callable[[Bus], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture
def shared(example, tmp_path: Path) -> Iterator[Ask]:
    """The example on a server that is not its own; what a test asks of the run's bus."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        server = runner.run(stack.enter_async_context(EmbeddedServer.start(tmp_path / "server")))
        example.settings |= {"bus.url": server.url, "bus.lease_s": 20, "learner.steps": STEPS}

        async def ask(question: Callable[[Bus], Coroutine[Any, Any, Any]]) -> Any:
            async with connect_url(server.url, run="arithmetic", name="person", lease_s=20, outage_timeout_s=5) as bus:
                return await question(bus)

        yield lambda question: runner.run(ask(question))
        runner.run(stack.aclose())


def test_a_run_on_a_shared_server_in_the_hands_of_a_person(example, shared: Ask) -> None:
    example.start("run")
    example.wait_for(lambda: example.step >= 2, "step 2")

    assert example.go("pause").returncode == 0
    time.sleep(2)
    reached = shared(lambda bus: bus.state()).cursor
    looked = example.go("status").stdout.splitlines()
    assert shared(lambda bus: bus.state()).cursor == reached, "nothing is admitted in a pause"
    assert [line for line in looked if line.startswith("admitted ") and " + dead 0" in line], looked
    assert any("reflux resume" in line for line in looked), "the pause is named"

    assert example.go("resume").returncode == 0
    example.wait_for(lambda: shared(bury_one) is not None, "a ticket to bury")
    example.go("pause")  # it must not be over before it is tried again
    assert "1 samples were given up" in example.go("dead", "list").stdout
    retried = example.go("dead", "retry", "--all")
    assert retried.stdout == "1 samples will be tried again\n", retried.stderr
    example.go("resume")

    example.started[-1].kill()
    example.started[-1].wait()
    refused = example.go("run")
    assert refused.returncode == 2
    assert "--take-over" in refused.stderr
    assert example.go("run", "--take-over").returncode == 0
    assert (example.result["ledger"]["applied"], example.result["dead"]) == (STEPS * 16, {})
    assert example.go("audit").returncode == 0


async def bury_one(bus: Bus) -> int | None:
    for lease in await bus.lease([TICKETS], 1, 0.2):
        await bus.bury([Burial(lease, "a test's whim")])
        return lease.seq
    return None
