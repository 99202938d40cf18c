"""A server that cannot be used is said in one sentence, in time, without the password."""

from __future__ import annotations

import time

import pytest
import redis

from common.bus import connect_url
from common.bus.embedded import EmbeddedServer
from common.errors import BusError, BusUnreachable, ConfigError

pytestmark = pytest.mark.redis


async def test_a_wrong_password_is_said_at_once(server: EmbeddedServer) -> None:
    url = server.url.replace(server.address.password, "guess")
    begin = time.monotonic()
    with pytest.raises(BusError, match=r"refused the login.*correct user and password") as caught:
        async with connect_url(url, run="r", name="w", lease_s=1, outage_timeout_s=120, connect_timeout_s=120):
            pass
    assert time.monotonic() - begin < 60
    assert "guess" not in str(caught.value)


async def test_a_server_that_may_evict_samples_is_refused(server: EmbeddedServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "1gb")
    with pytest.raises(BusError, match="set it to noeviction"):
        async with connect_url(server.url, run="r", name="w", lease_s=1, outage_timeout_s=60):
            pass


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1/0", "unix:///nowhere/at/all.sock"])
async def test_nobody_there_is_said_after_the_connect_timeout(url: str) -> None:
    begin = time.monotonic()
    with pytest.raises(BusUnreachable, match=r"no answer from the Redis-protocol server at (redis://127.0.0.1:1/0|unix:///nowhere)"):
        async with connect_url(url, run="r", name="w", lease_s=1, outage_timeout_s=120, connect_timeout_s=0.3):
            pass
    assert time.monotonic() - begin < 60


async def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="write redis://, rediss:// or unix://"):
        async with connect_url("http://host:6379", run="r", name="w", lease_s=1, outage_timeout_s=60):
            pass
