"""The runs that share one server, as whoever administers it sees them: it takes a user who may look at every key.

Guarantee: a key belongs to the run whose name stands in its braces, whatever else is in it; looking changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from common.bus.login import Login
from common.bus.redis_client import RedisClient

_KEY = re.compile(rb"reflux:\{([^}]*)\}:(.*)", re.DOTALL)
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class SharedRun:
    """A run on the server. `idle_s`: since anything was added to it; None where nothing ever was."""

    name: str
    term: int
    cursor: int
    applied: int
    live: int
    dead: int
    alive: bool
    idle_s: float | None
    bytes: int


@asynccontextmanager
async def server_at(url: str, timeout_s: float, login: Login | None = None) -> AsyncIterator[RedisClient]:
    """A client of the server as a whole."""
    client = RedisClient(url, outage_timeout_s=timeout_s, login=login)
    try:
        yield client
    finally:
        await client.aclose()


async def shared_runs(client: RedisClient) -> list[SharedRun]:
    """All runs, by name."""
    keys: dict[str, list[str]] = {}
    async for name, rest in _keys(client):
        keys.setdefault(name, []).append(rest)
    seconds, micros = await client.command("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    return [await _look(client, name, sorted(keys[name]), now_ms) for name in sorted(keys)]


async def sweep(client: RedisClient, run: str) -> int:
    """Deletes every key of the run; returns how many there were."""
    rest = [f"reflux:{{{run}}}:{rest}" async for name, rest in _keys(client) if name == run]
    for start in range(0, len(rest), _AT_ONCE):
        await client.command("DEL", *rest[start : start + _AT_ONCE])
    return len(rest)


async def _keys(client: RedisClient) -> AsyncIterator[tuple[str, str]]:
    """(run, rest of the key), each once."""
    cursor, seen = b"0", set[bytes]()
    while True:
        cursor, found = await client.command("SCAN", cursor, "MATCH", "reflux:{*}:*", "COUNT", _AT_ONCE)
        for raw in found:
            match = _KEY.fullmatch(raw)
            if match and raw not in seen:
                seen.add(raw)
                yield match[1].decode(errors="surrogateescape"), match[2].decode(errors="surrogateescape")
        if cursor == b"0":
            return


async def _look(client: RedisClient, name: str, rest: list[str], now_ms: int) -> SharedRun:
    root = f"reflux:{{{name}}}:"
    term, cursor, applied = await client.command("HMGET", root + "state", "term", "cursor", "applied")
    used, newest_ms = 0, 0
    for part in rest:
        used += await client.command("MEMORY", "USAGE", root + part) or 0
        if await client.command("TYPE", root + part) == b"stream":
            facts = await client.command("XINFO", "STREAM", root + part)
            newest_ms = max(newest_ms, int(dict(zip(facts[::2], facts[1::2], strict=True))[b"last-generated-id"].split(b"-")[0]))
    return SharedRun(
        name=name,
        term=int(term or 0),
        cursor=int(cursor or 0),
        applied=int(applied or 0),
        live=await client.command("HLEN", root + "live"),
        dead=await client.command("HLEN", root + "dead"),
        alive=any(part == "learner" or part.startswith("report:") for part in rest),
        idle_s=max(0.0, (now_ms - newest_ms) / 1000) if newest_ms else None,
        bytes=used,
    )
