"""How a command that is no role of the run reaches its bus; a run that is stopped gets its own server for as long as that takes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from rich.console import Console

from common import bus as buses
from common.bus.acl import Role
from common.bus.base import Bus
from common.config import RunConfig
from common.errors import ConfigError
from deploy.lock import is_held, only_supervisor

T = TypeVar("T")
_CONNECT_S = 3.0
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@asynccontextmanager
async def connected(config: RunConfig, role: Role = "operator") -> AsyncIterator[Bus]:
    """The bus of a run that is under way; raises BusError soon where it is not. An observer may look and change nothing."""
    section = config.bus.model_copy(update={"connect_timeout_s": _CONNECT_S, "outage_timeout_s": _CONNECT_S})
    async with buses.connect(config.model_copy(update={"bus": section}), name=f"visitor-{uuid.uuid4().hex[:12]}", role=role) as bus:
        yield bus


@asynccontextmanager
async def reached(config: RunConfig) -> AsyncIterator[Bus]:
    """The bus of a run, under way or not. While its own server serves this visit alone, nobody can start the run."""
    if config.bus.url or is_held(config.directory):
        async with connected(config) as bus:
            yield bus
        return
    if not (config.directory / "bus").is_dir():
        raise ConfigError(f"there is no run in {config.directory}: start it with `reflux run`")
    from deploy.server import served

    with only_supervisor(config.directory):
        async with served(config, say), connected(config) as bus:
            yield bus


def visit(config: RunConfig, ask: Callable[[Bus], Coroutine[Any, Any, T]]) -> T:
    """What `ask` answers."""

    async def there() -> T:
        async with reached(config) as bus:
            return await ask(bus)

    return asyncio.run(there())


def say(sentence: str) -> None:
    """One line for a person, however long; what strangers put into it cannot command the terminal."""
    Console().print(sentence.translate(_CONTROLS), highlight=False, markup=False, soft_wrap=True)
