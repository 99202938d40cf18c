"""Who holds an entry, and how it comes to another worker: leases, renewal, release, evidence of poison, on every medium."""

from __future__ import annotations

import asyncio
import time

from bus_media import ROLLOUTS, Medium, seqs, start_run, tickets

from common.bus.base import EVAL, TICKETS, Move

SHORT = 0.15


def moves(leases):
    return [Move(lease, ROLLOUTS, b"moved %d" % lease.seq) for lease in leases]


async def test_an_entry_is_leased_to_one_worker_only(medium: Medium) -> None:
    one, other = await medium.bus(), await medium.bus()
    await start_run(one, 5)
    assert seqs(await one.lease([TICKETS], 3, 0)) == [0, 1, 2]
    assert seqs(await other.lease([TICKETS], 3, 0)) == [3, 4]
    assert await one.lease([TICKETS], 3, 0) == []


async def test_topics_are_served_in_order_of_priority_up_to_count(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    await bus.ask(1, EVAL, [(7, b"question"), (8, b"question")])
    leased = await bus.lease([EVAL, TICKETS], 3, 0)
    assert [(one.topic, one.seq) for one in leased] == [(EVAL, 7), (EVAL, 8), (TICKETS, 0)]


async def test_a_waiting_worker_gets_what_arrives(medium: Medium) -> None:
    learner, worker = await medium.bus(), await medium.bus()
    waiting = asyncio.create_task(worker.lease([EVAL, TICKETS], 10, 60.0))
    await asyncio.sleep(0.05)
    begin = time.monotonic()
    await start_run(learner, 2)
    assert seqs(await waiting) == [0, 1]
    assert time.monotonic() - begin < 30


async def test_a_waiting_worker_gives_up_in_time(medium: Medium) -> None:
    bus = await medium.bus()
    begin = time.monotonic()
    assert await bus.lease([TICKETS], 10, 0.1) == []
    assert 0.08 < time.monotonic() - begin < 30


async def test_a_waiting_worker_delays_no_other_call_of_its_process(medium: Medium) -> None:
    bus = await medium.bus()
    waiting = asyncio.create_task(bus.lease([TICKETS], 1, 60.0))
    await asyncio.sleep(0.05)
    begin = time.monotonic()
    await bus.state()
    assert time.monotonic() - begin < 30
    waiting.cancel()


async def test_an_abandoned_entry_goes_to_another_worker_as_delivered_before(medium: Medium) -> None:
    dying, other = await medium.bus(lease_s=SHORT), await medium.bus(lease_s=SHORT)
    await start_run(dying, 3)
    await dying.lease([TICKETS], 2, 0)
    await asyncio.sleep(1.5 * SHORT)
    leased = await other.lease([TICKETS], 10, 0)
    assert [(one.seq, one.deliveries) for one in leased] == [(0, 2), (1, 2), (2, 1)]


async def test_a_renewed_lease_is_not_taken_over(medium: Medium) -> None:
    slow, other = await medium.bus(lease_s=1.0), await medium.bus(lease_s=1.0)
    await start_run(slow, 2)
    leased = await slow.lease([TICKETS], 2, 0)
    for _ in range(2):
        await asyncio.sleep(0.6)
        assert await slow.renew(leased[:1]) == leased[:1]
    assert seqs(await other.lease([TICKETS], 10, 0)) == [1]


async def test_renewal_says_what_is_lost(medium: Medium) -> None:
    slow, other = await medium.bus(lease_s=SHORT), await medium.bus(lease_s=SHORT)
    await start_run(slow, 2)
    leased = await slow.lease([TICKETS], 2, 0)
    await slow.hand_off(moves(leased[1:]))
    await asyncio.sleep(1.5 * SHORT)
    assert seqs(await other.lease([TICKETS], 1, 0)) == [0]
    assert await slow.renew(leased) == []


async def test_renewal_is_no_delivery(medium: Medium) -> None:
    one, other = await medium.bus(lease_s=SHORT), await medium.bus(lease_s=SHORT)
    await start_run(one, 1)
    leased = await one.lease([TICKETS], 1, 0)
    for _ in range(3):
        await one.renew(leased)
    await asyncio.sleep(1.5 * SHORT)
    assert [again.deliveries for again in await other.lease([TICKETS], 1, 0)] == [2]


async def test_a_released_entry_is_leased_at_once_and_its_delivery_does_not_count(medium: Medium) -> None:
    draining, other = await medium.bus(), await medium.bus()
    await start_run(draining, 2)
    held = await draining.lease([TICKETS], 1, 0)
    await draining.release(held)
    assert (await other.state()).leased[TICKETS] == 0
    again = await other.lease([TICKETS], 10, 0)
    assert [(one.seq, one.deliveries) for one in again] == [(0, 1), (1, 1)]
    assert await draining.hand_off(moves(held)) == ["refused"]


async def test_a_released_entry_reaches_a_worker_that_waits_already(medium: Medium) -> None:
    draining, other = await medium.bus(), await medium.bus()
    await start_run(draining, 1)
    held = await draining.lease([TICKETS], 1, 0)
    waiting = asyncio.create_task(other.lease([TICKETS], 1, 60.0))
    await asyncio.sleep(0.05)
    begin = time.monotonic()
    await draining.release(held)
    assert seqs(await waiting) == [0]
    assert time.monotonic() - begin < 30


async def test_a_released_entry_reaches_a_worker_that_has_just_found_nothing(medium: Medium) -> None:
    draining, other = await medium.bus(), await medium.bus()
    await start_run(draining, 1)
    held = await draining.lease([TICKETS], 1, 0)
    assert await other.lease([TICKETS], 1, 0) == []
    await draining.release(held)
    assert seqs(await other.lease([TICKETS], 1, 60.0)) == [0]


async def test_only_the_owner_can_release(medium: Medium) -> None:
    owner, other = await medium.bus(), await medium.bus()
    await start_run(owner, 1)
    held = await owner.lease([TICKETS], 1, 0)
    await other.release(held)
    assert await other.lease([TICKETS], 1, 0) == []
    assert await owner.hand_off(moves(held)) == ["done"]


async def test_lone_tries_are_counted_until_the_entry_moves_on(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 1)
    (held,) = await bus.lease([TICKETS], 1, 0)
    assert [await bus.begin_alone(held) for _ in range(3)] == [0, 1, 2]
    await bus.hand_off(moves([held]))
    (rollout,) = await bus.lease([ROLLOUTS], 1, 0)
    assert await bus.begin_alone(rollout) == 0


async def test_a_lone_try_that_was_given_back_is_no_evidence(medium: Medium) -> None:
    bus, other = await medium.bus(), await medium.bus()
    await start_run(bus, 1)
    (held,) = await bus.lease([TICKETS], 1, 0)
    assert await bus.begin_alone(held) == 0
    await bus.release([held])
    (again,) = await other.lease([TICKETS], 1, 0)
    assert await other.begin_alone(again) == 0


async def test_a_worker_that_waits_on_a_topic_outlives_its_clearing(medium: Medium) -> None:
    learner, worker = await medium.bus(), await medium.bus()
    await learner.ask(1, EVAL, tickets(0))
    await worker.lease([EVAL], 1, 0)
    waiting = asyncio.create_task(worker.lease([EVAL], 1, 10.0))
    await asyncio.sleep(0.05)
    await learner.clear(1, EVAL)
    await asyncio.sleep(0.05)
    await learner.ask(1, EVAL, tickets(1))
    assert seqs(await waiting) == [1]


async def test_what_a_silent_worker_held_is_not_lost_with_it(medium: Medium) -> None:
    silent, other = await medium.bus("silent", lease_s=SHORT), await medium.bus(lease_s=SHORT)
    await start_run(silent, 2)
    await silent.beat("silent", b"", 0.01)
    held = await silent.lease([TICKETS], 1, 0)
    await asyncio.sleep(1.5 * SHORT)
    await other.reports()
    assert [(one.seq, one.deliveries) for one in await other.lease([TICKETS], 10, 0)] == [(0, 2), (1, 1)]
    await other.reports()
    assert await silent.renew(held) == []
