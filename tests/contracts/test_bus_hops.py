"""One entry in, one entry out: hand-off, retry, burial, evaluations, on every medium."""

from __future__ import annotations

import asyncio

from bus_media import ROLLOUTS, Medium, seqs, start_run, tickets

from common.bus.base import EVAL, EVALUATED, SCORED, TICKETS, Burial, DeadLetter, LiveEntry, Move, Retry

SHORT = 0.15


def moves(leases, topic=ROLLOUTS):
    return [Move(lease, topic, b"moved %d" % lease.seq) for lease in leases]


async def test_a_sample_goes_through_all_hops_and_is_settled(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    leased = await bus.lease([TICKETS], 10, 0)
    assert [(one.seq, one.attempt, one.payload, one.deliveries) for one in leased] == [(n, 0, b"ticket %d" % n, 1) for n in range(3)]
    assert await bus.hand_off(moves(leased)) == ["done"] * 3
    assert await bus.hand_off(moves(await bus.lease([ROLLOUTS], 10, 0), SCORED)) == ["done"] * 3
    scored = await bus.lease([SCORED], 10, 0)
    assert [one.payload for one in scored] == [b"moved 0", b"moved 1", b"moved 2"]
    assert await bus.settle(1, scored) == 3
    state = await bus.state()
    assert (state.cursor, state.live, state.applied, state.dead) == (3, 0, 3, 0)


async def test_live_names_the_one_entry_that_carries_the_seq(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 2)
    first = await bus.lease([TICKETS], 1, 0)
    await bus.hand_off(moves(first))
    (rollout,) = await bus.lease([ROLLOUTS], 1, 0)
    (ticket,) = await bus.lease([TICKETS], 1, 0)
    assert await bus.live() == {0: LiveEntry(ROLLOUTS, rollout.entry, 0), 1: LiveEntry(TICKETS, ticket.entry, 0)}


async def test_the_hand_off_of_a_stolen_entry_is_refused(medium: Medium) -> None:
    slow, thief = await medium.bus(lease_s=SHORT), await medium.bus(lease_s=SHORT)
    await start_run(slow, 1)
    late = await slow.lease([TICKETS], 1, 0)
    await asyncio.sleep(1.5 * SHORT)
    stolen = await thief.lease([TICKETS], 1, 0)
    assert await slow.hand_off(moves(late)) == ["refused"]
    assert await thief.hand_off(moves(stolen)) == ["done"]
    assert await slow.hand_off(moves(late)) == ["refused"]
    assert (await thief.state()).backlog[ROLLOUTS] == 1


async def test_many_workers_that_steal_from_one_another_duplicate_nothing(medium: Medium) -> None:
    learner = await medium.bus()
    await start_run(learner, 200)

    async def work(bus, *, greedy: bool) -> None:
        while leased := await bus.bare.lease([TICKETS], 7, 0.3):
            if greedy:
                await asyncio.sleep(0.02)  # longer than a lease
            await bus.bare.hand_off(moves(leased))

    async with asyncio.TaskGroup() as tasks:
        for index in range(6):
            tasks.create_task(work(await medium.bus(lease_s=0.01), greedy=index % 2 == 0))
    leased = await learner.lease([ROLLOUTS], 1000, 0)
    assert sorted(seqs(leased)) == list(range(200))


async def test_one_call_treats_each_entry_by_itself(medium: Medium) -> None:
    slow, thief = await medium.bus(lease_s=SHORT), await medium.bus(lease_s=SHORT)
    await start_run(slow, 3)
    held = await slow.lease([TICKETS], 3, 0)
    await asyncio.sleep(1.5 * SHORT)
    await thief.lease([TICKETS], 1, 0)
    assert await slow.hand_off([*moves(held), *moves(held[2:])]) == ["refused", "done", "done", "refused"]


async def test_retry_gives_a_new_ticket_with_the_next_attempt(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 1)
    await bus.hand_off(moves(await bus.lease([TICKETS], 1, 0)))
    held = await bus.lease([ROLLOUTS], 1, 0)
    assert await bus.retry([Retry(held[0], b"again", "stale")], 3) == ["done"]
    assert await bus.retry([Retry(held[0], b"again", "stale")], 3) == ["refused"]
    (ticket,) = await bus.lease([TICKETS, ROLLOUTS], 10, 0)
    assert (ticket.seq, ticket.attempt, ticket.payload) == (0, 1, b"again")
    assert (await bus.state()).retried == {"stale": 1}


async def test_a_sample_is_dead_after_max_attempts(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 1)
    for _ in range(3):
        (held,) = await bus.lease([TICKETS], 1, 0)
        assert await bus.retry([Retry(held, b"again", "stale")], 3) == ["done"]
    assert await bus.lease([TICKETS], 1, 0) == []
    assert await bus.dead_letters() == {0: DeadLetter(0, 2, "stale", b"again")}
    state = await bus.state()
    assert (state.live, state.dead, state.retried) == (0, 1, {"stale": 2})


async def test_retry_of_a_stolen_entry_is_refused(medium: Medium) -> None:
    slow, thief = await medium.bus(lease_s=SHORT), await medium.bus(lease_s=SHORT)
    await start_run(slow, 1)
    (late,) = await slow.lease([TICKETS], 1, 0)
    await asyncio.sleep(1.5 * SHORT)
    await thief.lease([TICKETS], 1, 0)
    assert await slow.retry([Retry(late, b"again", "stale")], 3) == ["refused"]
    assert await slow.bury([Burial(late, "poison")]) == ["refused"]
    assert (await slow.state()).backlog[TICKETS] == 1


async def test_a_buried_sample_keeps_payload_and_reason(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 2)
    held = await bus.lease([TICKETS], 1, 0)
    assert await bus.bury([Burial(held[0], "log-probability 1.5 > 0 \u2013 unusable")]) == ["done"]
    assert await bus.bury([Burial(held[0], "again")]) == ["refused"]
    assert await bus.dead_letters() == {0: DeadLetter(0, 0, "log-probability 1.5 > 0 \u2013 unusable", b"ticket 0")}
    assert set(await bus.live()) == {1}


async def test_payloads_may_hold_any_bytes(medium: Medium) -> None:
    bus = await medium.bus()
    payload = bytes(range(256)) * 3
    await bus.claim(1, "learner", 30.0, False)
    await bus.admit(1, 0, [(0, payload)])
    (held,) = await bus.lease([TICKETS], 1, 0)
    assert held.payload == payload
    await bus.bury([Burial(held, "why")])
    assert (await bus.dead_letters())[0].payload == payload


async def test_the_backlog_is_what_is_not_done_leased_or_not(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 5)
    held = await bus.lease([TICKETS], 3, 0)
    await bus.hand_off(moves(held[:1]))
    state = await bus.state()
    assert {topic: n for topic, n in state.backlog.items() if n} == {TICKETS: 4, ROLLOUTS: 1}
    assert {topic: n for topic, n in state.leased.items() if n} == {TICKETS: 2}


async def test_a_large_batch_goes_in_pieces_and_keeps_its_order(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 700)
    held = await bus.lease([TICKETS], 1000, 0)
    big = [Move(lease, ROLLOUTS, b"x" * 50_000) for lease in held]
    assert await bus.hand_off(big) == ["done"] * 700
    assert seqs(await bus.lease([ROLLOUTS], 1000, 0)) == list(range(700))


async def test_evaluations_stand_outside_the_ledger(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 1)
    await bus.ask(1, EVAL, tickets(0, 1, 2, 3))
    held = await bus.lease([EVAL], 10, 0)
    assert await bus.hand_off(moves(held[:2], EVALUATED)) == ["done", "done"]
    assert await bus.retry([Retry(held[2], b"again", "stale")], 3) == ["done"]
    assert await bus.bury([Burial(held[3], "unusable")]) == ["done"]
    answers = await bus.lease([EVALUATED], 10, 0)
    assert seqs(answers) == [0, 1]
    await bus.answer(1, answers)
    (again,) = await bus.lease([EVAL], 10, 0)
    assert (again.seq, again.attempt, again.payload) == (2, 1, b"again")
    state = await bus.state()
    assert (state.live, state.dead, state.backlog[EVALUATED]) == (1, 0, 0)


async def test_a_cleared_topic_refuses_what_was_leased_from_it(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.ask(1, EVAL, tickets(0, 1))
    held = await bus.lease([EVAL], 1, 0)
    await bus.clear(1, EVAL)
    assert await bus.hand_off(moves(held, EVALUATED)) == ["refused"]
    assert await bus.renew(held) == []
    assert await bus.lease([EVAL, EVALUATED], 10, 0) == []
    await bus.ask(1, EVAL, tickets(5))
    assert seqs(await bus.lease([EVAL], 10, 0)) == [5]


async def test_several_runs_on_one_server_do_not_meet(medium: Medium) -> None:
    one, other = await medium.bus(run="one-" + medium.run), await medium.bus(run="other-" + medium.run)
    await start_run(one, 2)
    await other.claim(5, "another", 30.0, False)
    assert await other.lease([TICKETS], 10, 0) == []
    assert (await other.state()).cursor == 0
    assert seqs(await one.lease([TICKETS], 10, 0)) == [0, 1]


async def test_reports_are_those_of_workers_alive(medium: Medium) -> None:
    bus = await medium.bus()
    await bus.beat("scorer-1", b"one", 30.0)
    await bus.beat("scorer-2", b"two", 0.05)
    await bus.beat("scorer-1", b"newer", 30.0)
    await asyncio.sleep(0.1)
    assert await bus.reports() == {"scorer-1": b"newer"}


async def test_the_cursor_never_falls(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 5)
    assert await bus.reconcile(1, 3, 0, [], {}, {}) == 5
    assert await bus.bare.reconcile(1, 8, 0, [], {}, {}) == 8
    assert await bus.readmit(1, tickets(5, 6, 7)) == 3


async def test_an_entry_names_the_worker_that_put_it_there(medium: Medium) -> None:
    learner, producer, scorer = await medium.bus("learner-1"), await medium.bus("producer-1"), await medium.bus("scorer-1")
    await start_run(learner, 2)
    first, second = await producer.lease([TICKETS], 2, 0)
    assert first.by == "learner-1"
    await producer.hand_off([Move(first, ROLLOUTS, b"rollout")])
    await producer.retry([Retry(second, b"again", "why")], 3)
    assert [lease.by for lease in await scorer.lease([ROLLOUTS, TICKETS], 2, 0)] == ["producer-1", "producer-1"]
