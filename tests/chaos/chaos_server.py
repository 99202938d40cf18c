"""A Redis-protocol server that is killed, hung, emptied and set back in time."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import redis.asyncio as redis
from redis.exceptions import RedisError

from common.bus.embedded import find_server, free_port

_START_S = 20.0


class Server:
    """`url` has the password; the data outlive the process."""

    def __init__(self, directory: Path) -> None:
        self._data, self._log = directory / "data", directory / "server.log"
        self._data.mkdir(parents=True)
        self.port, self._password = free_port(), secrets.token_hex(8)
        self.process: subprocess.Popen[bytes] | None = None
        self.eye = redis.Redis.from_url(self.url(self.port), socket_timeout=1.0, socket_connect_timeout=1.0)

    def url(self, port: int) -> str:
        """By way of another port."""
        return f"redis://:{self._password}@127.0.0.1:{port}/0"

    async def start(self) -> None:
        """On the data that are there; returns when it answers."""
        settings = f"bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\nappendonly yes\nappendfsync everysec\nsave ''\n"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                [find_server(), "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._data
            )
        assert self.process.stdin
        with self.process.stdin as stdin:
            stdin.write(settings.encode())
        async with asyncio.timeout(_START_S):
            while not await self.answers():
                await asyncio.sleep(0.02)

    async def answers(self) -> bool:
        try:
            return bool(await self.eye.ping())
        except (RedisError, OSError):
            return False

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def copy(self) -> Path:
        """Its append-only file as it is now."""
        copy = self._data.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._data, copy)
        return copy

    def wipe(self) -> None:
        """Only when it is dead."""
        shutil.rmtree(self._data)
        self._data.mkdir()

    def set_back(self, copy: Path) -> None:
        """Only when it is dead."""
        shutil.rmtree(self._data)
        copy.rename(self._data)

    async def close(self) -> None:
        await self.eye.aclose()
        if self.process and self.process.poll() is None:
            self.kill()
