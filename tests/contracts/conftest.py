"""Fixtures: every medium of the bus in turn, and servers of a test's own to disturb."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import object_stores
import pytest
import pytest_asyncio
from bus_media import SERVERS, Medium, binary_of

from common.bus.embedded import EmbeddedServer


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


@pytest.fixture(scope="session", autouse=True)
def object_stores_end() -> Iterator[None]:
    """Those that a test has asked for."""
    yield
    object_stores.close()


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
