"""Lost replies, restarts with and without data, a full server, a server that hangs: on every real server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis
from bus_media import ROLLOUTS, Medium, assert_balanced, seqs, start_run, tickets
from lossy_proxy import LossyProxy

from common.bus.base import SCORED, TICKETS, Burial, Move, Retry
from common.bus.embedded import EmbeddedServer
from common.errors import BusFull, BusUnreachable

pytestmark = pytest.mark.redis


def moves(leases, topic=ROLLOUTS, payload=b"rollout"):
    return [Move(lease, topic, payload) for lease in leases]


@pytest_asyncio.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[LossyProxy]:
    async with LossyProxy.to(server.address.port) as between:
        yield between


@pytest_asyncio.fixture
async def bus(own_medium: Medium, server: EmbeddedServer, proxy: LossyProxy):
    """A bus whose replies the proxy can swallow; the server knows all scripts already."""
    made = await own_medium.bus("worker", url=server.url.replace(str(server.address.port), str(proxy.port)))
    await start_run(made, 4)
    held = await made.lease([TICKETS], 3, 0)
    assert await made.hand_off(moves(held[:1])) == ["done"]
    return made


def forget_scripts(server: EmbeddedServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.script_flush()


async def test_a_hand_off_repeated_after_a_lost_reply_is_recognised_as_done(bus, proxy: LossyProxy) -> None:
    held = await bus.lease([TICKETS, ROLLOUTS], 2, 0)
    targets = [Move(held[0], ROLLOUTS, b"a"), Move(held[1], SCORED, b"b")]
    proxy.lose = 2
    assert await bus.hand_off([*targets, targets[0]]) == ["done", "done", "refused"]
    assert proxy.lose == 0
    state = await bus.state()
    assert (state.backlog[ROLLOUTS], state.backlog[SCORED]) == (1, 1)


async def test_every_call_repeated_after_a_lost_reply_changes_things_once(bus, proxy: LossyProxy) -> None:
    await bus.hand_off(moves(await bus.lease([TICKETS], 9, 0), SCORED))
    await bus.retry([], 3)

    async def lossy(call):
        proxy.lose = 1
        outcome = await call
        assert proxy.lose == 0
        return outcome

    (rollout,) = await bus.lease([ROLLOUTS], 1, 0)
    (scored,) = await bus.lease([SCORED], 1, 0)
    for call in (bus.settle(1, []), bus.retry([Retry(scored, b"", "x")], 0), bus.begin_alone(rollout), bus.publish(1, b"first", 9)):
        await call  # the server learns the scripts
    assert await lossy(bus.begin_alone(rollout)) == 1
    assert await bus.begin_alone(rollout) == 2
    assert await lossy(bus.retry([Retry(rollout, b"again", "stale")], 3)) == ["done"]
    assert await lossy(bus.admit(1, 4, tickets(4, 5))) == 6
    (ticket, *others) = await bus.lease([TICKETS], 9, 0)
    assert await lossy(bus.bury([Burial(ticket, "poison")])) == ["done"]
    await bus.hand_off(moves(others, SCORED))
    again = await bus.lease([SCORED], 9, 0)
    assert await lossy(bus.settle(1, again)) == len(again) == 2
    await lossy(bus.publish(1, b"second", 9))
    assert [payload for _, payload in await bus.weights_after("0", 0)] == [b"first", b"second"]
    state = await bus.state()
    assert (state.applied, state.retried) == (2, {"stale": 1})


async def test_entries_of_a_lost_lease_reply_are_reclaimed_at_once(bus, proxy: LossyProxy) -> None:
    await bus.admit(1, 4, tickets(4, 5))
    proxy.lose = 1
    leased = await bus.lease([TICKETS], 10, 0)
    assert [(one.seq, one.deliveries) for one in leased] == [(3, 1), (4, 1), (5, 1)]
    assert await bus.hand_off(moves(leased)) == ["done"] * 3


async def test_scripts_that_the_server_forgot_are_sent_again(bus, server: EmbeddedServer) -> None:
    forget_scripts(server)
    held = await bus.lease([ROLLOUTS], 1, 0)
    assert await bus.hand_off(moves(held, SCORED)) == ["done"]


async def test_calls_go_on_after_a_restart_with_data(own_medium: Medium, server: EmbeddedServer) -> None:
    bus = await own_medium.bus()
    await start_run(bus, 3)
    before = await bus.state()
    held = await bus.lease([TICKETS], 2, 0)
    waiting = asyncio.create_task(bus.lease([SCORED], 1, 20.0))
    await server.stop()
    handing = asyncio.create_task(bus.hand_off(moves(held, SCORED)))
    await asyncio.sleep(0.2)
    assert not handing.done()
    await server.launch()
    assert await handing == ["done", "done"]
    assert seqs(await waiting) == [0]
    after = await bus.state()
    assert after.incarnation != before.incarnation
    assert after.cursor == 3


async def test_an_empty_restart_is_noticed_and_reconciled(own_medium: Medium, server: EmbeddedServer, tmp_path: Path) -> None:
    learner, worker = await own_medium.bus(), await own_medium.bus()
    await start_run(learner, 4)
    await learner.reconcile(1, 4, 0, [], {}, {})
    held = await worker.lease([TICKETS], 2, 0)
    before = (await learner.state()).incarnation
    await server.stop()
    shutil.rmtree(tmp_path / "bus")
    await server.launch()
    assert await worker.lease([TICKETS], 2, 0.1) == []
    assert await worker.hand_off(moves(held)) == ["refused", "refused"]
    assert await learner.admit(1, 4, tickets(4)) == 0
    assert (await learner.state()).incarnation != before
    assert await learner.bare.reconcile(1, 4, 1, [0], {1: "dead"}, {}) == 4
    assert await learner.readmit(1, tickets(2, 3)) == 2
    await learner.hold(1, "learner", 30.0)
    assert seqs(await worker.lease([TICKETS], 9, 0)) == [2, 3]
    assert await learner.admit(1, 4, tickets(4)) == 5


async def test_entries_that_a_rollback_brings_back_are_reclaimed_by_their_worker(
    own_medium: Medium, server: EmbeddedServer, tmp_path: Path
) -> None:
    bus = await own_medium.bus()
    await start_run(bus, 3)
    held = await bus.lease([TICKETS], 2, 0)
    await server.stop()
    shutil.copytree(tmp_path / "bus", tmp_path / "kept")
    await server.launch()
    assert await bus.hand_off(moves(held[:1], SCORED)) == ["done"]
    await server.stop()
    shutil.rmtree(tmp_path / "bus")
    (tmp_path / "kept").rename(tmp_path / "bus")
    await server.launch()
    await assert_balanced(bus.bare)
    back = await bus.lease([TICKETS], 9, 0)
    assert seqs(back) == [0, 2], "seq 1 is still held"
    assert await bus.hand_off(moves([*back, held[1]], SCORED)) == ["done"] * 3


async def test_a_full_server_refuses_and_loses_nothing(own_medium: Medium, server: EmbeddedServer) -> None:
    bus = await own_medium.bus()
    await start_run(bus, 8)
    scored = await bus.lease([TICKETS], 2, 0)
    await bus.hand_off(moves(scored, SCORED))
    scored = await bus.lease([SCORED], 2, 0)
    held = await bus.lease([TICKETS], 5, 0)
    await bus.beat("worker", b"", 30.0)
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "100kb")
        before = await bus.state()
        for refused in (bus.hand_off(moves(held)), bus.retry([Retry(held[0], b"", "x")], 9), bus.admit(1, 8, tickets(8))):
            with pytest.raises(BusFull, match="no memory left"):
                await refused
        after = await bus.state()
        assert (after.backlog, after.leased, after.cursor) == (before.backlog, before.leased, before.cursor)
        await bus.beat("worker", b"still here", 30.0)
        assert (await bus.reports())["worker"] == b"still here"
        assert "memory is used up" in after.obstacle
        await bus.hold(1, "learner", 30.0)
        assert await bus.begin_alone(held[0]) == 0
        assert await bus.vouch("t", "digest") == "digest"
        assert await bus.lease(["rollouts:another"], 1, 0) == []
        assert await bus.renew(held) == held
        assert await bus.settle(1, scored) == 2
        assert await bus.bury([Burial(held[0], "poison")]) == ["done"]
        await bus.release(held[1:2])
        assert seqs(await bus.lease([TICKETS], 1, 0)) == [held[1].seq]
        assert await bus.reconcile(1, 8, 2, [0, 1], {held[1].seq: "dead"}, {}) == 8
        client.config_set("maxmemory", 0)
    assert await bus.hand_off(moves(held[2:])) == ["done"] * 3


async def test_a_server_that_hangs_is_given_up_within_the_outage_timeout(own_medium: Medium, server: EmbeddedServer) -> None:
    bus = await own_medium.bus(outage_timeout_s=0.5)
    await start_run(bus, 1)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for call in (bus.state(), bus.lease([TICKETS], 1, 0.2), bus.beat("worker", b"", 1.0)):
            begin = time.monotonic()
            with pytest.raises(BusUnreachable, match=r"no answer.*outage_timeout_s"):
                await call
            assert time.monotonic() - begin < 30
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert seqs(await bus.lease([TICKETS], 1, 1.0)) == [0]


async def test_a_server_that_hangs_for_a_moment_delays_and_no_more(own_medium: Medium, server: EmbeddedServer) -> None:
    bus = await own_medium.bus()
    await start_run(bus, 1)
    os.kill(server.pid, signal.SIGSTOP)
    leasing = asyncio.create_task(bus.lease([TICKETS], 1, 1.0))
    await asyncio.sleep(0.3)
    os.kill(server.pid, signal.SIGCONT)
    assert seqs(await leasing) == [0]


async def test_an_entry_deleted_behind_our_back_is_no_longer_pending_and_can_be_admitted_again(
    own_medium: Medium, server: EmbeddedServer
) -> None:
    dying, other = await own_medium.bus(lease_s=0.1), await own_medium.bus(lease_s=0.1)
    await start_run(dying, 2)
    held = await dying.lease([TICKETS], 2, 0)
    with redis.Redis.from_url(server.url) as client:
        client.xdel(f"reflux:{{{own_medium.run}}}:{TICKETS}", held[0].entry)
    await asyncio.sleep(0.15)
    assert seqs(await other.lease([TICKETS], 9, 0)) == [1]
    assert (await other.state()).leased[TICKETS] == 1
    await other.bare.reconcile(1, 2, 0, [], {}, {})
    assert await other.readmit(1, tickets(0)) == 1


async def test_a_worker_that_waits_makes_the_groups_of_a_server_that_came_back_empty(
    own_medium: Medium, server: EmbeddedServer, tmp_path: Path
) -> None:
    learner, worker = await own_medium.bus(), await own_medium.bus()
    waiting = asyncio.create_task(worker.lease([TICKETS], 1, 20.0))
    await asyncio.sleep(0.1)
    await server.stop()
    shutil.rmtree(tmp_path / "bus")
    await server.launch()
    await start_run(learner, 1)
    assert seqs(await waiting) == [0]


async def test_an_owned_entry_that_live_does_not_name_cannot_move(own_medium: Medium, server: EmbeddedServer) -> None:
    bus = await own_medium.bus()
    await start_run(bus, 1)
    held = await bus.lease([TICKETS], 1, 0)
    with redis.Redis.from_url(server.url) as client:
        client.hset(f"reflux:{{{own_medium.run}}}:live", "0", f"9-9 0 {SCORED}")
    assert await bus.bare.hand_off(moves(held)) == ["refused"]
    assert await bus.bare.retry([Retry(held[0], b"again", "stale")], 3) == ["refused"]
    assert await bus.bare.bury([Burial(held[0], "poison")]) == ["refused"]
    assert await bus.bare.settle(1, held) == 0
    await bus.bare.discard(1, held)
    state = await bus.state()
    assert (state.backlog, state.dead, state.applied) == ({TICKETS: 0}, 0, 0)


async def test_dead_workers_consumers_are_reaped_once_nothing_is_pending(own_medium: Medium, server: EmbeddedServer) -> None:
    dead, other = await own_medium.bus("dead", lease_s=0.1), await own_medium.bus("other", lease_s=0.1)
    await start_run(dead, 2)
    await dead.beat("dead", b"", 0.01)
    await dead.lease([TICKETS], 1, 0)
    await asyncio.sleep(0.15)

    def consumers() -> set[bytes]:
        with redis.Redis.from_url(server.url) as client:
            return {one["name"] for one in client.xinfo_consumers(f"reflux:{{{own_medium.run}}}:{TICKETS}", "workers")}

    await other.reports()
    assert b"dead" in consumers()
    assert len(await other.lease([TICKETS], 9, 0)) == 2
    await other.reports()
    assert consumers() == {b"other"}
