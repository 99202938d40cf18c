"""What reconciling does on every medium: the bus forgets what the journal has applied or buried."""

from __future__ import annotations

from bus_media import ROLLOUTS, Medium, advance, start_run

from common.bus.base import SCORED, TICKETS, Burial, DeadLetter, Move


async def test_reconciling_removes_what_is_applied_or_dead_wherever_it_is(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 6)
    scored = await advance(bus, TICKETS, SCORED, 2)
    rollouts = await bus.lease([TICKETS], 2, 0)
    await bus.hand_off([Move(lease, ROLLOUTS, b"rollout") for lease in rollouts])
    assert await bus.reconcile(1, 4, 2, [0, 2], {1: "unusable", 4: "too long"}, {}) == 6
    assert set(await bus.live()) == {3, 5}
    letters = await bus.dead_letters()
    assert {seq: letter.reason for seq, letter in letters.items()} == {1: "unusable", 4: "too long"}
    assert letters[4] == DeadLetter(4, 0, "too long", b"ticket 4")
    assert await bus.hand_off([Move(scored[0], ROLLOUTS, b"")]) == ["refused"]
    assert (await bus.state()).applied == 2


async def test_reconciling_joins_the_dead_and_forgets_those_that_are_applied(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 3)
    held = await bus.lease([TICKETS], 2, 0)
    await bus.bury([Burial(lease, "server's word") for lease in held])
    await bus.reconcile(1, 3, 1, [0], {1: "learner's word"}, {})
    assert {seq: letter.reason for seq, letter in (await bus.dead_letters()).items()} == {1: "server's word"}
    again = await bus.reconcile(1, 3, 1, [0], {1: "learner's word"}, {})
    assert (again, set(await bus.dead_letters())) == (3, {1})


async def test_reconciling_takes_anything_that_tells_whether_a_seq_is_gone(medium: Medium) -> None:
    bus = await medium.bus()
    await start_run(bus, 4)

    class Even:
        def __contains__(self, seq: object) -> bool:
            return isinstance(seq, int) and seq % 2 == 0

    await bus.reconcile(1, 4, 2, Even(), {}, {})
    assert set(await bus.live()) == {1, 3}
