"""P7: every role, and every command, against a server that accepts and never answers: a named error in time, exit code ≠ 0; and a server
that falls silent in mid-run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bus import connect_url
from common.bus.embedded import EmbeddedServer
from common.errors import ConfigError
from common.service import EXIT_DONE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples" / "arithmetic" / "run.toml"

COMMANDS = {
    "producer": ("producers", "--config", str(CONFIG)),
    "scorer": ("scorers", "--config", str(CONFIG), "--teacher", "arithmetic"),
    "learner": ("learner", "--config", str(CONFIG)),
    "run": ("deploy", "run", str(CONFIG)),
    "pause": ("deploy", "pause", str(CONFIG)),
}


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Accepts every connection, reads, and never says a word."""
    listener, open_ones = socket.create_server(("127.0.0.1", 0)), []

    def accept() -> None:
        while True:
            try:
                open_ones.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for one in open_ones:
        one.close()


@pytest.mark.parametrize("role", COMMANDS)
def test_a_server_that_never_answers_is_a_named_error_in_time(role: str, black_hole: str, tmp_path: Path) -> None:
    sets = [f"--set={one}" for one in (f"bus.url={black_hole}", "bus.connect_timeout_s=1.5", f"run.dir={tmp_path}")]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *COMMANDS[role], *sets],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != EXIT_DONE, said
    assert "no answer from the Redis-protocol server at redis://127.0.0.1:" in said
    assert "start it, or correct bus.url" in said
    assert "Traceback" not in said
    assert time.monotonic() - began < 100


async def test_a_server_smaller_than_the_window_is_refused_with_both_numbers(server: EmbeddedServer) -> None:
    import redis

    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "64mb")
    connection = connect_url(server.url, run="r", name="w", lease_s=30.0, outage_timeout_s=5.0, max_bytes=65 << 20)
    with pytest.raises(ConfigError, match=r"maxmemory of 67108864 bytes, less than bus\.max_bytes = 68157440"):
        async with connection:
            pass
    async with connect_url(server.url, run="r", name="w", lease_s=30.0, outage_timeout_s=5.0, max_bytes=64 << 20) as bus:
        await bus.state()
