"""Which run `reflux dashboard` means; what does not exist is one sentence and an exit code, before any port is taken."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import tomli_w
from recorded_run import RecordedRun

from common.bus import connect_url
from common.bus.embedded import EmbeddedServer
from common.config.run import without_password
from deploy.__main__ import main
from deploy.dashboard.serve import Listening, _bound, _found
from deploy.dashboard.source import BusSource, RunSource

ROOT = Path(__file__).resolve().parents[3]


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with EmbeddedServer.start(tmp_path / "server") as server:
        yield server.url


@pytest.fixture
def public(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address for a command line; the password is in the environment."""
    monkeypatch.setenv("REFLUX_PASSWORD", urlsplit(url).password or "")
    return without_password(url)


async def begin(url: str, *names: str) -> None:
    for name in names:
        async with connect_url(url, run=name, name="learner", lease_s=30.0, outage_timeout_s=60.0) as bus:
            await bus.claim(1, "learner", 30.0, False)
            await bus.admit(1, 0, [(0, b"ticket")])


def config_file(run: RecordedRun) -> Path:
    file = run.config.directory.parent / "run.toml"
    file.write_text(tomli_w.dumps(run.config.model_dump(mode="json", exclude_none=True)))
    return file


def says(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["dashboard", "--port", "0", *arguments])
    return code, capsys.readouterr().err


def test_a_run_that_does_not_exist_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RecordedRun(tmp_path)
    file = config_file(run)
    run.config.directory.rename(tmp_path / "elsewhere")
    assert says(capsys, str(file)) == (
        2,
        f"reflux: there is no run in {run.config.directory}: start it with `reflux run`, or name another\n",
    )
    assert says(capsys, str(tmp_path))[0] == 2
    assert says(capsys, str(tmp_path / "none.toml"))[0] == 2


@pytest.mark.redis
async def test_a_server_s_only_run_needs_no_name_and_several_do(url: str, public: str) -> None:
    with pytest.raises(Exception, match="there is no run on this server"):
        await _found(public, [], "", wait=False)
    await begin(url, "one")
    source = await _found(public, [], "", wait=False)
    assert isinstance(source, BusSource)
    assert source.facts()["run"] == "one"
    await begin(url, "two")
    with pytest.raises(Exception, match="say which run with --run NAME: one, two"):
        await _found(public, [], "", wait=False)
    assert (await _found(public, [], "two", wait=False)).facts()["run"] == "two"
    with pytest.raises(Exception, match="there is no run three on this server"):
        await _found(public, [], "three", wait=False)


@pytest.mark.redis
async def test_a_run_whose_directory_is_elsewhere_is_shown_from_its_server(url: str, tmp_path: Path) -> None:
    run = RecordedRun(tmp_path, url=url)
    file = config_file(run)
    assert isinstance(await _found(str(file), [], "", wait=False), RunSource)
    run.config.directory.rename(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="there is no run r on this server"):
        await _found(str(file), [], "", wait=False)
    waiting = asyncio.create_task(_found(str(file), [], "", wait=True))
    await begin(url, "r")
    assert isinstance(await asyncio.wait_for(waiting, 60), BusSource)


def test_a_server_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = says(capsys, "redis://127.0.0.1:1", "--run", "r")
    assert code == 1
    assert said.count("\n") == 1


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config_file(RecordedRun(tmp_path))
    with _bound(Listening("127.0.0.1", 0)) as taken:
        code, said = says(capsys, str(file), "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "choose another with --host and --port" in said


def test_a_token_file_that_is_missing_or_empty_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config_file(RecordedRun(tmp_path))
    for token in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").write_text("\n")
        code, said = says(capsys, str(file), "--token-file", str(token))
        assert (code, said.count("\n")) == (2, 1)
        assert "--token-file" in said


def test_the_command_serves_on_loopback_until_it_is_interrupted(tmp_path: Path) -> None:
    file = config_file(RecordedRun(tmp_path))
    command = [sys.executable, "-m", "deploy", "dashboard", str(file), "--port", "0"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        sentence = r"the dashboard of r is at (http://127.0.0.1:\d+/) \(Ctrl-C ends it; the run goes on\)\n"
        told = re.fullmatch(sentence, process.stdout.readline())
        assert told
        assert "<title>" in page_at(told[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def page_at(address: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=60) as reply:
                text: str = reply.read().decode()
                return text
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
