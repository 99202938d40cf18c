"""Calls to one Redis-protocol server: each has a deadline, and a lost connection is tried again until the outage has lasted too long.

To the callers: an answer, or BusUnreachable / BusFull / BusError whose one sentence names the server and says what to do. Nothing waits for
ever (P7). A call that waits on the server has a connection of its own, so it delays no other. Scripts go by digest and are sent whole where
the server does not know them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import time
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as LateAnswer

from common.bus.answer_limit import parser_with
from common.bus.login import Login
from common.errors import BusError, BusFull, BusUnreachable, ConfigError, LearnerActive, RefluxError, Superseded

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 1.0
_PROMPT_S = 0.05
"""An answer that takes longer is overdue; our own event loop may be busy for so long."""
_FORBIDDEN = ("ERR invalid password", "ERR AUTH", "ERR Client sent AUTH")
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "CERTIFICATE_REQUIRED", "KEY_VALUES_MISMATCH")
LARGEST_ANSWER = 1 << 30

Argument = bytes | str | int | float


def shown(url: str) -> str:
    """The address without its login and parameters, also where it is malformed."""
    scheme, separator, _ = url.partition("://")
    address = url.removeprefix(scheme + separator) if separator else url
    return (scheme if separator else "") + separator + address.rpartition("@")[2].partition("?")[0]


@cache
def _script(name: str) -> tuple[str, str]:
    """(text, digest) of a script with its prelude."""
    folder = files("common.bus") / "scripts"
    text = (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Connections to the server at `url`; the first call connects. `overdue` is told the seconds in which an answer was overdue."""

    def __init__(
        self,
        url: str,
        *,
        outage_timeout_s: float,
        overdue: Callable[[float], None] = lambda _: None,
        login: Login | None = None,
        largest_answer: int = LARGEST_ANSWER,
    ) -> None:
        options = (login or Login()).options() | {"parser_class": parser_with(largest_answer), "retry": Retry(NoBackoff(), 0)}
        try:
            self._pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, socket_connect_timeout=None, **options)
        except ValueError as error:
            raise ConfigError(f"bus.url = {shown(url)!r} cannot be used: write redis://, rediss:// or unix://") from error
        self._free: list[Connection] = []
        self._outage_timeout_s = outage_timeout_s
        self._overdue = overdue
        self._told_until = 0.0
        self.address = shown(url)
        self.losses = 0
        """How often an answer did not come: what the server did for such a call is not known."""

    async def script(self, name: str, *arguments: Argument) -> Any:
        """Runs a script; its first argument is the run's root key."""
        text, digest = _script(name)
        try:
            return await self.command("EVALSHA", digest, 1, *arguments)
        except NoScriptError:
            return await self.command("EVAL", text, 1, *arguments)

    async def command(self, *arguments: Argument, wait_s: float = 0.0, outage_timeout_s: float | None = None) -> Any:
        """One command; `wait_s` is how long the server itself may wait before it answers. Replies are bytes, ints and lists (RESP2)."""
        due = time.monotonic() + wait_s + _PROMPT_S
        try:
            return await self._until_answered(arguments, wait_s, outage_timeout_s)
        finally:
            self._tell_overdue(due)

    def _tell_overdue(self, due: float) -> None:
        """Seconds in which several calls were overdue count once."""
        now, since = time.monotonic(), max(due, self._told_until)
        if now > since:
            self._told_until = now
            self._overdue(now - since)

    async def _until_answered(self, arguments: tuple[Argument, ...], wait_s: float, outage_timeout_s: float | None) -> Any:
        limit = time.monotonic() + (self._outage_timeout_s if outage_timeout_s is None else outage_timeout_s)
        tries = 0
        while True:
            timeout_s = max(0.01, min(CALL_TIMEOUT_S + wait_s, limit - time.monotonic()))
            try:
                reply = await self._once(arguments, timeout_s)
            except (AuthenticationError, AuthorizationError) as error:
                raise self._forbidden(error) from error
            except (LostConnection, LateAnswer, InvalidResponse, OSError) as error:  # TimeoutError is an OSError
                await self._pause(error, tries, limit)
            except ResponseError as error:
                if _cannot_write(error):
                    limit = math.inf  # it is there, and says what it waits for
                elif not _passes(error):
                    raise self._refusal(error) from error
                await self._pause(error, tries, limit)
            else:
                if tries:
                    log.info("the server answers again", extra={"server": self.address, "tries": tries})
                return reply
            tries += 1

    async def answers(self, timeout_s: float = 1.0) -> bool:
        """Whether the server answers now; tries once."""
        try:
            return bool(await self._once(("PING",), timeout_s) == b"PONG")
        except (RedisError, OSError):
            return False

    async def aclose(self) -> None:
        """Closes what is idle; calls under way close theirs when cancelled."""
        while self._free:
            await self._free.pop().disconnect(nowait=True)

    async def _once(self, arguments: tuple[Argument, ...], timeout_s: float) -> Any:
        connection = self._free.pop() if self._free else self._new_connection()
        try:
            async with asyncio.timeout(timeout_s):
                if not connection.is_connected:
                    await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command(*arguments, check_health=False)
                reply = await connection.read_response()
        except ResponseError:
            self._free.append(connection)  # a refusal is an answer
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._free.append(connection)
        return reply

    def _new_connection(self) -> Connection:
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def _pause(self, error: Exception, tries: int, limit: float) -> None:
        if any(word in str(error) for word in _UNTRUSTED):
            raise BusError(
                f"TLS with the server at {self.address} failed ({_reason(error)}): correct bus.tls_ca, bus.tls_cert and bus.tls_key, "
                f"or the host in bus.url"
            ) from error
        self.losses += 1
        await self.aclose()  # idle connections are as dead as this one
        pause = min(_LONGEST_PAUSE_S, 0.02 * 2 ** min(tries, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        left = limit - time.monotonic()
        if left <= pause:
            raise BusUnreachable(
                f"no answer from the Redis-protocol server at {self.address} ({_reason(error)}): "
                f"start it, or correct bus.url; bus.outage_timeout_s and bus.connect_timeout_s say how long to wait"
            ) from error
        if tries == 0:
            log.warning("the server does not answer", extra={"server": self.address, "reason": _reason(error)})
        await asyncio.sleep(pause)

    def _refusal(self, error: ResponseError) -> Exception:
        text = str(error)
        if isinstance(error, NoScriptError) or text.startswith("NOGROUP"):
            return error
        if text.startswith(_FORBIDDEN):
            return self._forbidden(error)
        return self._named(text) or self._plain(error, text)

    def _named(self, text: str) -> RefluxError | None:
        """What the run's own scripts say."""
        if text.startswith("SUPERSEDED"):
            return Superseded(f"a learner of a higher term ({text.removeprefix('SUPERSEDED ')}) has taken over this run: this one stops")
        if text.startswith("LEARNER"):
            return LearnerActive(
                f"another learner ({text.removeprefix('LEARNER ')}) works on this run: stop it, or start this one with --take-over"
            )
        return None

    def _plain(self, error: ResponseError, text: str) -> BusError:
        if isinstance(error, OutOfMemoryError) or "-OOM " in text:  # 6.2 wraps what a script meets
            return BusFull(f"the server at {self.address} has no memory left: raise its maxmemory, or lower learner.max_staleness")
        if isinstance(error, NoPermissionError) or "ACL failure" in text or "user executing the script" in text:
            return BusError(f"the server at {self.address} does not let this user do that ({text}): load what `reflux acl` prints into it")
        return BusError(f"the server at {self.address} refused a command: {text}")

    def _forbidden(self, error: RedisError) -> BusError:
        return BusError(
            f"the server at {self.address} refused the login ({error}): correct user and password in bus.url, or bus.user and the password "
            f"that bus.password_file or bus.password_env names"
        )


def _passes(error: ResponseError) -> bool:
    """A failover (it also ends a wait), or another client's script that runs long: the server will answer soon."""
    text = str(error)
    is_failover = isinstance(error, ReadOnlyError | ClusterDownError | TryAgainError) or "-READONLY " in text  # 6.2 wraps a script's
    return is_failover or text.startswith(("BUSY ", "UNBLOCKED "))


def _cannot_write(error: ResponseError) -> bool:
    """The server's own disk is full: it takes no write until there is room, then goes on."""
    return str(error).startswith("MISCONF") or "-MISCONF " in str(error)


def _reason(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
