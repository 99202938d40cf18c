"""The reply of one call is lost and the call goes out again: it has its effect once, and the caller hears what it would have heard.

The calls here are rare in a run, so a storm of faults hardly ever meets them; test_bus_faults.py has those that every sample makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import redis
from bus_media import SERVERS, Medium, advance, seqs, start_run, tickets
from lossy_proxy import LossyProxy

from common.bus.base import SCORED, TICKETS, Burial, Revival

pytestmark = pytest.mark.redis
SCRIPTS = Path(__file__).resolve().parents[2] / "common" / "bus" / "scripts"
Lossy = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture(params=list(SERVERS))
def medium_url(request: pytest.FixtureRequest, server_url: Callable[[str], str]) -> str:
    """The server knows every script, so that the reply lost is the call's own."""
    url = server_url(request.param)
    prelude = (SCRIPTS / "prelude.lua").read_text()
    with redis.Redis.from_url(url) as client:
        for path in SCRIPTS.glob("*.lua"):
            client.script_load(prelude + path.read_text())
    return url


@pytest_asyncio.fixture
async def proxy(medium: Medium) -> AsyncIterator[LossyProxy]:
    port = urlsplit(medium.url).port
    assert port
    async with LossyProxy.to(port) as between:
        yield between


@pytest_asyncio.fixture
async def bus(medium: Medium, proxy: LossyProxy) -> Any:
    """Without the check of the ledger after each call: its own look would take the place of the reply to be lost."""
    made = await medium.bus("worker", url=medium.url.replace(str(urlsplit(medium.url).port), str(proxy.port)))
    await start_run(made, 6)
    return made.bare


@pytest.fixture
def lossy(proxy: LossyProxy) -> Lossy:
    async def once(call: Coroutine[Any, Any, Any], *, spare: int = 0) -> Any:
        proxy.spare, proxy.lose = spare, 1
        outcome = await call
        assert (proxy.spare, proxy.lose) == (0, 0), "no reply was lost"
        return outcome

    return once


async def balance(bus: Any) -> tuple[int, int, int, int]:
    state = await bus.state()
    assert state.cursor == state.live + state.applied + state.dead
    return state.cursor, state.live, state.applied, state.dead


async def test_a_burial(bus: Any, lossy: Lossy) -> None:
    held = await bus.lease([TICKETS], 3, 0)
    assert await lossy(bus.bury([Burial(lease, "poison") for lease in held[:2]])) == ["done", "done"]
    assert await bus.bury([Burial(held[0], "again")]) == ["refused"]
    assert {seq: letter.reason for seq, letter in (await bus.dead_letters()).items()} == {0: "poison", 1: "poison"}
    assert await balance(bus) == (6, 4, 0, 2)


async def test_a_readmission(bus: Any, lossy: Lossy) -> None:
    assert await lossy(bus.readmit(1, tickets(2, 6, 7))) == 2
    assert await balance(bus) == (8, 8, 0, 0)
    assert seqs(await bus.lease([TICKETS], 99, 0)) == list(range(8))


@pytest.mark.parametrize("spare", [0, 1], ids=["of the look before", "of the change"])
async def test_a_reconciliation(bus: Any, lossy: Lossy, spare: int) -> None:
    scored = await advance(bus, TICKETS, SCORED, 2)
    assert await lossy(bus.reconcile(1, 9, 2, [0, 1], {2: "unusable"}, {4: 1}), spare=spare) == 9
    assert await bus.settle(1, scored) == 0
    assert (await bus.readmit(1, tickets(6, 7, 8)), await bus.lives()) == (3, {4: 1})
    assert await balance(bus) == (9, 6, 2, 1)


async def test_the_word_that_all_is_reconciled(bus: Any, lossy: Lossy, medium: Medium) -> None:
    await bus.reconcile(1, 6, 0, [], {}, {})
    incarnation = (await bus.state()).incarnation
    await lossy(bus.reconciled(1, incarnation))
    with redis.Redis.from_url(medium.url) as client:
        assert client.hget(f"reflux:{{{medium.run}}}:state", "reconciled") == f"1 {incarnation.partition(':')[0]}".encode()


async def test_a_look_at_the_reports_that_forgets_a_silent_worker(bus: Any, lossy: Lossy) -> None:
    await bus.beat("silent", b"", 0.01)
    await bus.beat("alive", b"report", 30.0)
    await asyncio.sleep(0.05)
    assert await lossy(bus.reports()) == {"alive": b"report"}


async def test_a_revival(bus: Any, lossy: Lossy) -> None:
    held = await bus.lease([TICKETS], 1, 0)
    await bus.bury([Burial(held[0], "poison")])
    assert await lossy(bus.revive([Revival(0, 1, b"anew"), Revival(1, 1, b"alive")])) == [0]
    assert (await bus.lives(), await bus.dead_letters()) == ({0: 1}, {})
    assert sorted(seqs(await bus.lease([TICKETS], 99, 0))) == list(range(6))
    assert await balance(bus) == (6, 6, 0, 0)


async def test_dropping_what_a_dead_letter_holds(bus: Any, lossy: Lossy) -> None:
    held = await bus.lease([TICKETS], 1, 0)
    await bus.bury([Burial(held[0], "poison: 1 apple")])
    assert await lossy(bus.strip([0, 1])) == [0]
    letter = (await bus.dead_letters())[0]
    assert (letter.attempt, letter.reason, letter.payload) == (0, "poison: 1 apple", b"")
    assert await balance(bus) == (6, 5, 0, 1)


async def test_the_first_word_on_a_teacher(bus: Any, lossy: Lossy) -> None:
    assert await lossy(bus.vouch("t", "first")) == "first"
    assert await lossy(bus.vouch("t", "second")) == "first"


@pytest.mark.parametrize("forced", [False, True])
async def test_a_purge(bus: Any, lossy: Lossy, medium: Medium, forced: bool) -> None:
    assert await lossy(bus.purge(forced)) == ([] if forced else ["learner"])
    assert await balance(bus) == ((0, 0, 0, 0) if forced else (6, 6, 0, 0))
    with redis.Redis.from_url(medium.url) as client:
        left = {key.decode().rpartition("}:")[2] for key in client.scan_iter(f"reflux:{{{medium.run}}}:*")}
    assert left <= {"calls:worker"} if forced else "state" in left
