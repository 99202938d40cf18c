"""Several runs on one server: each is listed, and a purge takes one and leaves the others."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from common.bus import connect_url
from common.bus.base import TICKETS, Burial, rollouts
from common.bus.embedded import EmbeddedServer
from common.bus.runs import server_at, shared_runs
from common.config import parse_config
from common.config.run import without_password
from common.errors import UserError
from common.pulse import Report
from deploy.__main__ import main
from deploy.local import _forget

pytestmark = pytest.mark.redis
CONFIG = Path(__file__).resolve().parents[3] / "examples" / "arithmetic" / "run.toml"


@pytest_asyncio.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with EmbeddedServer.start(tmp_path / "server") as server:
        yield server.url


async def fill(url: str, run: str, *, alive: bool = False) -> None:
    async with connect_url(url, run=run, name="worker", lease_s=30.0, outage_timeout_s=60.0) as bus:
        await bus.claim(1, "learner", 30.0, False)
        await bus.admit(1, 0, [(seq, b"ticket") for seq in range(5)])
        await bus.bury([Burial(lease, "why") for lease in await bus.lease([TICKETS], 2, 0)])
        await bus.lease([rollouts("t"), "eval"], 1, 0)
        await bus.vouch("t", "digest")
        await bus.publish(1, b"manifest", 2)
        await bus.beat("worker", Report("producer", "worker").encode(), 30.0 if alive else 0.001)
        if not alive:
            await bus.resign(1, "learner")
            async with asyncio.timeout(60):
                while await bus.reports():  # until the last heartbeat has been forgotten
                    await asyncio.sleep(0.001)


async def keys(url: str) -> set[str]:
    async with server_at(url, 3.0) as client:
        return {key.decode() for key in await client.command("KEYS", "*")}


async def runs(url: str) -> dict[str, tuple[bool, int, int, int]]:
    async with server_at(url, 3.0) as client:
        found = await shared_runs(client)
    assert all(run.bytes > 0 for run in found)
    return {run.name: (run.alive, run.cursor, run.live, run.dead) for run in found}


async def reflux(command: str, url: str, *arguments: str) -> int:
    """With the server's password in the environment."""
    public = without_password(url)
    assert public != url
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFLUX_PASSWORD", urlsplit(url).password or "")
        return await asyncio.to_thread(main, (command, public, *arguments))


@pytest.mark.parametrize("command", ["runs", "purge", "dashboard"])
@pytest.mark.parametrize("address", ["redis://:sesame@127.0.0.1:1", "redis://me:sesame@127.0.0.1:1", "redis://127.0.0.1:1?password=sesame"])
def test_a_password_on_the_command_line_is_refused_without_showing_it(
    command: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, address]) == 2
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err
    assert "give redis://" in said.err
    assert "in the environment's REFLUX_PASSWORD" in said.err


@pytest.mark.parametrize(("setting", "warned"), [("bus.url=redis://:sesame@127.0.0.1:1", True), ("bus.url=redis://127.0.0.1:1", False)])
def test_a_password_in_a_setting_is_warned_of(setting: str, warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    main(["acl", str(CONFIG), "--set", setting])
    said = capsys.readouterr()
    assert ("everybody on this machine can read the password in --set bus.url" in said.err) == warned
    assert "sesame" not in said.out + said.err


async def test_runs_are_listed_with_what_is_in_them(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await fill(url, "one")
    await fill(url, "two", alive=True)
    assert await runs(url) == {"one": (False, 5, 3, 2), "two": (True, 5, 3, 2)}
    assert await reflux("runs", url) == 0
    lines = capsys.readouterr().out.splitlines()
    (one,) = [line for line in lines if " one " in line]
    assert [cell.strip() for cell in one.split("│")][2:7] == ["stopped", "5", "3", "0", "2"]
    assert "ago" in one
    assert lines[-1] == "2 runs on this server"


async def test_a_purge_takes_a_run_whole_and_leaves_the_others_alone(url: str) -> None:
    names = ["a", "ab", "a-b", "b"]
    for name in names:
        await fill(url, name)
    before = await keys(url)
    assert await reflux("purge", url, "a") == 0
    assert await keys(url) == {key for key in before if not key.startswith("reflux:{a}:")}
    assert set(await runs(url)) == {"ab", "a-b", "b"}


async def test_a_run_in_which_somebody_lives_is_purged_only_by_force(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await fill(url, "one", alive=True)
    before = await keys(url)
    assert await reflux("purge", url, "one") == 2
    assert capsys.readouterr().err == "reflux: the run one is alive (learner, worker): stop it first, or purge it with --force\n"
    assert {key for key in before if "calls" not in key} <= await keys(url)
    assert await reflux("purge", url, "one", "--force") == 0
    assert await keys(url) == set()


async def test_old_runs_go_together_and_those_alive_stay(url: str) -> None:
    await fill(url, "old")
    await fill(url, "new", alive=True)
    assert await reflux("purge", url, "--older-than", "1d") == 0
    assert set(await runs(url)) == {"old", "new"}
    assert await reflux("purge", url, "--older-than", "0m") == 0
    assert set(await runs(url)) == {"new"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say which runs"),
        (("nobody",), "no run nobody"),
        (("--older-than", "soon"), "no age"),
        (("one", "--older-than", "1d"), "not both"),
    ],
)
async def test_a_mistake_removes_nothing(url: str, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    await fill(url, "one")
    assert await reflux("purge", url, *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert set(await runs(url)) == {"one"}


async def test_a_fresh_start_on_a_shared_server_leaves_nothing_of_the_old_run(url: str) -> None:
    values = {
        "run": {"name": "one"},
        "model": {"student": "s"},
        "teachers": {"t": {"path": "t"}},
        "data": {"prompts": "p"},
        "evaluation": {"prompts": 0},
        "bus": {"url": url},
    }
    await fill(url, "one")
    await fill(url, "two")
    await _forget(parse_config(values), force=False)
    assert set(await runs(url)) - {"one"} == {"two"}
    async with connect_url(url, run="one", name="w", lease_s=30.0, outage_timeout_s=60.0) as bus:
        assert (await bus.state()).term == 0
        await bus.claim(1, "learner", 30.0, False)
        with pytest.raises(UserError, match="is alive on its server \\(learner\\)"):
            await _forget(parse_config(values), force=False)
        await _forget(parse_config(values), force=True)
        assert (await bus.state()).term == 0
