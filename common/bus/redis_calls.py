"""What every call of one worker on one run carries: the run's root key, the worker's name, and for calls that change something a number.

The number lets the server answer a call that is repeated after a lost reply as it did the first time. Many entries go in one call, in
pieces so that no script holds the server up for long; each entry is treated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from common.bus.base import Lease
from common.bus.redis_client import Argument, RedisClient

MOST_ENTRIES = 256
MOST_BYTES = 4 << 20

T = TypeVar("T")


class RunCalls:
    """Calls of the worker `name` on the run `run`."""

    def __init__(self, client: RedisClient, *, run: str, name: str) -> None:
        self._client = client
        self._root = f"reflux:{{{run}}}:"
        self._name = name
        self._calls = 0

    def _key(self, name: str) -> str:
        return self._root + name

    def _number(self) -> int:
        self._calls += 1
        return self._calls

    async def _script(self, script: str, *arguments: Argument) -> Any:
        return await self._client.script(script, self._root, self._name, *arguments)

    async def aclose(self) -> None:
        """See Bus.aclose."""
        await self._client.aclose()


def record(lease: Lease) -> tuple[Argument, ...]:
    """What names an entry and its sample."""
    return lease.topic, lease.entry, lease.seq, lease.attempt


def pieces(entries: Sequence[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Cuts into runs of at most MOST_ENTRIES entries and about MOST_BYTES bytes."""
    begin = total = 0
    for index, entry in enumerate(entries):
        total += size(entry)
        if index > begin and (index - begin >= MOST_ENTRIES or total > MOST_BYTES):
            yield entries[begin:index]
            begin, total = index, size(entry)
    if begin < len(entries):
        yield entries[begin:]
