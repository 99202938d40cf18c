"""P7: every role, and every command, against a server that accepts and never answers, in the place of Redis, teacher, student and weight
store: a named error in time, exit code ≠ 0."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from object_stores import CREDENTIALS, SECRET

from common.bus import connect_url
from common.bus.embedded import EmbeddedServer
from common.config import load_config
from common.errors import ConfigError, ServersUnreachable, StoreAway
from common.messages import Sampling, TeacherShare, Ticket, Version, WeightFile, WeightManifest
from common.pulse import Pulse
from common.service import EXIT_DONE, _leaf
from common.weights import open_store
from producers.engines import open_engine
from scorers.probe import open_checked

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
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for one in open_ones:
        one.close()


@pytest.mark.parametrize("role", COMMANDS)
def test_a_server_that_never_answers_is_a_named_error_in_time(role: str, black_hole: str, tmp_path: Path) -> None:
    sets = [f"--set={one}" for one in (f"bus.url=redis://{black_hole}/0", "bus.connect_timeout_s=1.5", f"run.dir={tmp_path}")]
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


async def test_students_and_teachers_servers_that_never_answer_are_named_in_time(
    black_hole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.sglang.server.INFO_DEADLINE_S", 1.0)
    places = [("producer", "student"), ("teachers.arithmetic", "teacher arithmetic")]
    sets = [f"{key}.{one}" for key, _ in places for one in ("kind=sglang", f'urls=["http://{black_hole}"]', "unreachable_s=0.5")]
    config = load_config(CONFIG, [*sets, f"run.dir={tmp_path}"])
    engine = open_engine(config, Pulse())
    ticket = Ticket(0, 0, "p", np.array([5, 6], np.int32), Sampling(1.0, 4, ()), (TeacherShare("arithmetic", 1.0),), Version(0, 0))
    began = time.monotonic()
    try:
        async with asyncio.timeout(60):
            said = await asyncio.gather(engine.generate(ticket), open_checked(config, "arithmetic", Pulse()), return_exceptions=True)
    finally:
        await engine.aclose()
    for error, (_, who) in zip(map(_leaf, said), places, strict=True):
        assert isinstance(error, ServersUnreachable), error
        assert f"{who}: no server is in rotation since 0.5 s (http://{black_hole}" in str(error)
        assert "gave no answer within" in str(error)
        assert str(error).endswith("start one")
    assert time.monotonic() - began < 45


async def test_a_weight_store_that_never_answers_is_named_in_time(black_hole: str, tmp_path: Path) -> None:
    config = load_config(CONFIG, [f"weights.url=http://{black_hole}", "weights.deadline_s=0.5", f"run.dir={tmp_path}"])
    manifest = WeightManifest(Version(1, 1), "full", "term000001-step00000001", (WeightFile("model.safetensors", 8, "0" * 64),), {})
    store = open_store(config)
    for asked in (store.fetch(manifest), store.versions()):
        async with asyncio.timeout(45):
            with pytest.raises(StoreAway, match=rf"weight store http://{black_hole} has not answered for 0\.5 s: .*weights\.deadline_s"):
                await asked


ASKS = """
import asyncio, sys
from pathlib import Path
from common.config import load_config
from common.weights import open_store
try:
    asyncio.run(open_store(load_config(Path(sys.argv[1]), sys.argv[2:])).versions())
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("url", ["s3://bucket/mine", "gs://bucket/mine"])
def test_an_object_store_that_never_answers_is_named_in_time_and_lets_the_process_end(url: str, black_hole: str, tmp_path: Path) -> None:
    """In a process of its own: the library's own call goes on, and tries again."""
    hole = {"AWS_ENDPOINT_URL": f"http://{black_hole}", "STORAGE_EMULATOR_HOST": f"http://{black_hole}", **CREDENTIALS}
    done = subprocess.run(
        [sys.executable, "-c", ASKS, str(CONFIG), f"weights.url={url}", "weights.deadline_s=0.5", f"run.dir={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AWS_DEFAULT_REGION": "us-east-1", **hole},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"StoreAway: the weight store {url} has not answered for 0.5 s: mend it" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


async def test_a_server_smaller_than_the_window_is_refused_with_both_numbers(server: EmbeddedServer) -> None:
    import redis

    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "64mb")
    connection = connect_url(server.url, run="r", name="w", lease_s=30.0, outage_timeout_s=60.0, max_bytes=65 << 20)
    with pytest.raises(ConfigError, match=r"maxmemory of 67108864 bytes, less than bus\.max_bytes = 68157440"):
        async with connection:
            pass
    async with connect_url(server.url, run="r", name="w", lease_s=30.0, outage_timeout_s=60.0, max_bytes=64 << 20) as bus:
        await bus.state()
