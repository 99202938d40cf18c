"""One user per role: each does its part of a run under it, and nothing else, on every kind of server."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis
from bus_media import binary_of
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry as Again

from common.bus import connect_url
from common.bus.acl import ROLES, acl_line, acl_lines, user_of
from common.bus.base import EVAL, EVALUATED, SCORED, TICKETS, Burial, Move, Retry, Revival, rollouts
from common.bus.embedded import EmbeddedServer, free_port
from common.errors import BusError

pytestmark = pytest.mark.redis
RUN = "r-1.x"
ROOT_KEY = f"reflux:{{{RUN}}}:"
DANGEROUS = (
    "CONFIG GET *", "CONFIG SET dir .", "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "ACL LIST", "ACL WHOAMI", "SHUTDOWN NOSAVE", "MONITOR",
    "CLIENT LIST", "CLIENT KILL TYPE normal", "SAVE", "BGREWRITEAOF", "REPLICAOF NO ONE", "SCRIPT FLUSH", "SLOWLOG GET", "MODULE LIST",
    "PUBLISH c m", "SUBSCRIBE c", "FUNCTION LIST", "SWAPDB 0 1", "MIGRATE h 1 k 0 1", "RENAME a b", "DUMP a", "RESTORE a 0 x",
)  # fmt: skip
KINDS = ["valkey", "redis-6.2", "redis-system"]
REFUSED = {
    "producer": ["weights", "scored", "state", "learner", "calls:learner-1", "calls:scorer-1", "report:scorer-1"],
    "scorer": ["weights", "state", "learner", "eval", "evaluated", "calls:producer-1", "report:learner-1"],
}
ALLOWED = {"producer": ["tickets", "calls:producer-1"], "scorer": ["scored", "rollouts:t", "live"]}


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server of each kind for all tests."""
    with asyncio.Runner() as runner:
        stack, directory = AsyncExitStack(), tmp_path_factory.mktemp(request.param)
        started = EmbeddedServer.start(directory, run=RUN, binary=binary_of(request.param))
        yield runner.run(stack.enter_async_context(started))
        runner.run(stack.aclose())


@pytest.fixture
def guarded(shared: EmbeddedServer) -> EmbeddedServer:
    """With nothing in it."""
    with redis.Redis.from_url(shared.url) as administrator:
        administrator.flushall()
    return shared


@pytest_asyncio.fixture
async def worker(guarded: EmbeddedServer) -> AsyncIterator[Any]:
    """Makes the bus of a role's process."""
    async with AsyncExitStack() as closing:

        async def make(role: str, name: str = "", **options: Any) -> Any:
            url = guarded.address.url_of(RUN, role)
            bus = connect_url(url, run=RUN, name=name or f"{role}-1", lease_s=0.2, outage_timeout_s=60.0, **options)
            return await closing.enter_async_context(bus)

        yield make


def as_user(server: EmbeddedServer, role: str) -> redis.Redis:
    return redis.Redis.from_url(server.address.url_of(RUN, role))


async def produce(producer: Any) -> None:
    questions = await producer.lease([EVAL, TICKETS], 1, 0.1)
    assert await producer.hand_off([Move(questions[0], EVALUATED, b"answer")]) == ["done"]
    tickets = await producer.lease([EVAL, TICKETS], 5, 0.1)
    assert [lease.seq for lease in tickets] == [0, 1, 2, 3, 4]
    assert await producer.renew(tickets) == tickets
    assert await producer.begin_alone(tickets[4]) == 0
    await producer.release(tickets[4:])
    assert await producer.bury([Burial(tickets[3], "poison")]) == ["done"]
    assert await producer.hand_off([Move(lease, rollouts("t"), b"rollout") for lease in tickets[:3]]) == ["done"] * 3
    await producer.beat("producer-1", b"report", 0.05)


async def score(scorer: Any) -> None:
    assert await scorer.vouch("t", "digest") == "digest"
    scored = await scorer.lease([rollouts("t")], 2, 0.1)
    assert await scorer.retry([Retry(scored[0], b"again", "nan")], 3) == ["done"]
    assert await scorer.hand_off([Move(scored[1], SCORED, b"scored")]) == ["done"]
    await asyncio.sleep(0.25)  # a lease that expires
    last = await scorer.lease([rollouts("t")], 2, 0.5)
    assert await scorer.bury([Burial(last[0], "poison")]) == ["done"]
    await scorer.beat("scorer-1", b"report", 30.0)


async def test_every_role_does_its_part_of_a_run(worker: Any) -> None:
    learner, producer, scorer = await worker("learner"), await worker("producer"), await worker("scorer")
    operator, observer = await worker("operator"), await worker("observer")
    await learner.claim(1, "learner-1", 30.0, False)
    await learner.hold(1, "learner-1", 30.0)
    await learner.reconcile(1, 0, 0, set(), {}, {})
    await learner.reconciled(1, (await learner.state()).incarnation)
    await learner.publish(1, b"manifest", 8)
    assert await learner.admit(1, 0, [(seq, b"ticket") for seq in range(5)]) == 5
    await learner.ask(1, EVAL, [(0, b"question")])

    follower = await worker("follower", "producer-1")
    assert [payload for _, payload in await follower.weights_after("0", 0.0)] == [b"manifest"]
    assert await follower.weights_after("$", 0.01) == []
    await produce(producer)
    await score(scorer)
    done = await learner.lease([SCORED], 5, 0.5)
    assert await learner.settle(1, done) == 1
    await learner.answer(1, await learner.lease([EVALUATED], 1, 0.1))
    await learner.clear(1, EVALUATED)
    await learner.discard(1, [])
    assert set(await learner.live()) == {0, 4}
    assert set(await observer.dead_letters()) == set(await learner.dead_letters()) == {2, 3}
    assert not await learner.paused()
    await operator.pause(True)
    assert await observer.paused()
    assert await learner.readmit(1, [(0, b"t"), (7, b"t")]) == 1
    await observer.reports()  # cannot forget the producer that is silent by now
    assert set(await operator.reports()) == {"scorer-1"}
    for looking in (learner, operator, observer):
        state = await looking.state()
        assert (state.cursor, state.live, state.applied, state.dead) == (8, 3, 1, 2)
    assert await operator.revive([Revival(2, 1, b"t")]) in ([], [2])
    assert await operator.strip([3]) == [3]
    assert await observer.lives() == await learner.lives()
    await learner.resign(1, "learner-1")


@pytest.mark.parametrize("role", ROLES)
async def test_nobody_may_do_what_harms_the_server_or_shows_others(guarded: EmbeddedServer, role: str) -> None:
    with as_user(guarded, role) as client:
        for command in DANGEROUS:
            with pytest.raises(redis.ResponseError, match=r"(?i)no permission|unknown"):
                client.execute_command(*command.split())
        for key in ("other", "reflux:{other}:live", "reflux:live", f"reflux:{{{RUN}}}"):
            for call in (("HGET", key, "a"), ("EVAL", "return redis.call('HGET', KEYS[1], 'a')", 1, key)):
                with pytest.raises(redis.ResponseError, match=r"(?i)access|no permission"):
                    client.execute_command(*call)
            with pytest.raises(redis.ResponseError, match=r"(?i)access|no permission"):
                client.execute_command("EVAL", f"return redis.call('HGET', '{key}', 'a')", 1, ROOT_KEY)


@pytest.mark.parametrize("role", REFUSED)
def test_a_worker_cannot_touch_the_others_keys(guarded: EmbeddedServer, role: str) -> None:
    with as_user(guarded, role) as client:
        for name in REFUSED[role]:
            key = ROOT_KEY + name
            for script, declared in (("return redis.call('EXISTS', KEYS[1])", key), (f"return redis.call('EXISTS', '{key}')", ROOT_KEY)):
                with pytest.raises(redis.ResponseError, match=r"(?i)access"):
                    client.execute_command("EVAL", script, 1, declared)
        for name in ALLOWED[role]:
            assert client.exists(ROOT_KEY + name) == 0


@pytest.mark.parametrize("call", ["XADD weights * a b", "XDEL weights 0-1", "XREAD STREAMS tickets 0", "XRANGE weights - +"])
def test_a_follower_reads_the_weights_log_and_does_nothing_else(guarded: EmbeddedServer, call: str) -> None:
    words = [ROOT_KEY + word if word in {"weights", "tickets"} else word for word in call.split()]
    with as_user(guarded, "follower") as client:
        assert client.xread({ROOT_KEY + "weights": "0"}) == []
        with pytest.raises(redis.ResponseError, match=r"(?i)no permission"):
            client.execute_command(*words)


@pytest.mark.parametrize("call", ["HSET state paused 1", "XADD tickets * a b", "DEL live", "SET learner me"])
def test_an_observer_changes_nothing(guarded: EmbeddedServer, call: str) -> None:
    command, name, *rest = call.split()
    with as_user(guarded, "observer") as client:
        with pytest.raises(redis.ResponseError, match=r"(?i)no permission"):
            client.execute_command(command, ROOT_KEY + name, *rest)
        with pytest.raises(redis.ResponseError, match=r"(?i)can't run|no permission"):
            client.eval("return redis.call(unpack(ARGV))", 1, ROOT_KEY, command, ROOT_KEY + name, *rest)


async def test_what_a_user_may_not_do_is_said_with_what_to_do(worker: Any) -> None:
    observer = await worker("observer")
    with pytest.raises(BusError, match=r"does not let this user do that .*: load what `reflux acl` prints"):
        await observer.pause(True)
    scorer = await worker("scorer")
    with pytest.raises(BusError, match=r"does not let this user do that .*: load what `reflux acl` prints"):
        await scorer.admit(1, 0, [(0, b"t")])


def test_a_stranger_gets_nothing(guarded: EmbeddedServer) -> None:
    port, passwords = guarded.address.port, guarded.address.users
    for login in ({}, {"username": user_of(RUN, "scorer"), "password": passwords["producer"]}):
        with redis.Redis(port=port, **login, retry=Again(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_the_lines_are_an_acl_file_as_they_are(binary: Path, tmp_path: Path) -> None:
    lines = ["user default off", *acl_lines(RUN, dict.fromkeys(ROLES, "pw"))]
    (tmp_path / "users.acl").write_text("\n".join(lines) + "\n")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--aclfile", tmp_path / "users.acl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            with redis.Redis(
                port=port, username=user_of(RUN, "producer"), password="pw", retry=Again(ConstantBackoff(0.02), 500)
            ) as client:
                assert client.ping()
        finally:
            process.kill()


def test_a_line_holds_the_digest_and_never_the_password() -> None:
    line = acl_line("r", "learner", "secret")
    assert "secret" not in line
    assert f"#{hashlib.sha256(b'secret').hexdigest()}" in line.split()


def test_whatever_a_script_calls_the_learner_may_call() -> None:
    """The learner runs nearly all of them; a command that is new in one belongs into common/bus/acl.py."""
    folder = Path(__file__).resolve().parents[2] / "common" / "bus" / "scripts"
    called = {name for path in folder.glob("*.lua") for name in re.findall(r"redis\.p?call\('(\w+)'", path.read_text())}
    allowed = {rule.removeprefix("+").partition("|")[0].upper() for rule in acl_line("r", "learner", "x").split() if rule.startswith("+")}
    assert called
    assert called <= allowed
