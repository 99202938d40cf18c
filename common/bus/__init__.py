"""The bus between the stages: one Protocol (base), a Redis-protocol adapter, a memory twin, and the embedded server."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.bus.acl import Role
from common.bus.address import ADDRESS_FILE, Address, read_address
from common.bus.base import Bus
from common.bus.login import Login, login_of
from common.errors import BusError, BusUnreachable, ConfigError

if TYPE_CHECKING:
    from common.bus.redis_client import RedisClient
    from common.config import RunConfig

log = logging.getLogger(__name__)

_OLDEST = (6, 2)


@asynccontextmanager
async def connect(
    config: RunConfig, *, name: str, role: Role = "operator", overdue: Callable[[float], None] = lambda _: None
) -> AsyncIterator[Bus]:
    """The run's bus for the worker `name` (unique to its process), with the rights of `role`; waits `bus.connect_timeout_s` for the server.
    `overdue` is told the seconds in which an answer of the server was overdue."""
    settings = config.bus
    limit = time.monotonic() + settings.connect_timeout_s
    login = login_of(settings, config.run.name, role)
    url = settings.url or (await _embedded(config.directory / ADDRESS_FILE, limit)).url_of(config.run.name, role)
    async with connect_url(
        url,
        run=config.run.name,
        name=name,
        lease_s=settings.lease_s,
        outage_timeout_s=settings.outage_timeout_s,
        connect_timeout_s=max(1.0, limit - time.monotonic()),
        overdue=overdue,
        login=login,
        largest_entry=config.largest_entry_bytes,
        largest_answer=config.largest_answer_bytes,
        max_bytes=settings.max_bytes,
    ) as bus:
        yield bus


@asynccontextmanager
async def connect_url(
    url: str,
    *,
    run: str,
    name: str,
    lease_s: float,
    outage_timeout_s: float,
    connect_timeout_s: float = 30.0,
    overdue: Callable[[float], None] = lambda _: None,
    login: Login | None = None,
    largest_entry: int = 1 << 29,
    largest_answer: int = 1 << 30,
    max_bytes: int = 0,
) -> AsyncIterator[Bus]:
    """The bus of `run` on the server at `url`."""
    from common.bus.redis_bus import RedisBus
    from common.bus.redis_client import RedisClient

    client = RedisClient(url, outage_timeout_s=outage_timeout_s, overdue=overdue, login=login, largest_answer=largest_answer)
    bus = RedisBus(client, run=run, name=name, lease_s=lease_s, largest_entry=largest_entry)
    try:
        await _check_server(client, connect_timeout_s, max_bytes)
        yield bus
    finally:
        await bus.aclose()


async def _embedded(path: Path, limit: float) -> Address:
    if read_address(path) is None:
        log.info("waits for the run's server", extra={"address": str(path)})
    while time.monotonic() < limit:
        if address := read_address(path):
            return address
        await asyncio.sleep(0.05)
    raise BusUnreachable(f"{path} does not appear: start `reflux run` for this run first, or set bus.url to a server's address")


async def server_facts(config: RunConfig, *, timeout_s: float) -> dict[str, str]:
    """What INFO of the server at bus.url says; raises BusError where it is none for this run."""
    from common.bus.redis_client import RedisClient

    login = login_of(config.bus, config.run.name, "observer")
    client = RedisClient(config.bus.url, outage_timeout_s=timeout_s, login=login)
    try:
        return await _check_server(client, timeout_s, config.bus.max_bytes)
    finally:
        await client.aclose()


async def _check_server(client: RedisClient, connect_timeout_s: float, max_bytes: int) -> dict[str, str]:
    reply: bytes = await client.command("INFO", outage_timeout_s=connect_timeout_s)
    facts = dict(re.findall(r"^([a-z_]+):(.*?)\r?$", reply.decode(), re.MULTILINE))
    version = tuple(int(part) for part in facts.get("redis_version", "6.2").split(".")[:2])
    if version < _OLDEST:
        raise BusError(f"the server at {client.address} speaks Redis {facts['redis_version']}: use Redis 6.2 or later, or Valkey")
    most = int(facts.get("maxmemory", "0"))
    if 0 < most < max_bytes:
        raise ConfigError(
            f"the server at {client.address} has a maxmemory of {most} bytes, less than bus.max_bytes = {max_bytes}: "
            f"raise the one or lower the other"
        )
    if most and facts.get("maxmemory_policy", "noeviction") != "noeviction":
        raise BusError(
            f"the server at {client.address} may evict samples (maxmemory-policy {facts['maxmemory_policy']}): set it to noeviction"
        )
    return facts
