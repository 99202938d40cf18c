"""Short pieces of a run's life, each of which ends well only if one rule of the protocol stands."""

from __future__ import annotations

from learner_fakes import ticket_of
from protocol_workers import Life
from protocol_world import World

from common.bus.base import SCORED
from common.codec import encode
from learner import checkpoint, journal, terms


def begun(world: World) -> None:
    """A learner has admitted its first window, and nobody has leased of it."""
    world.start_learner()
    world.until(lambda: world.medium.model.live)


def trained(world: World, steps: int = 1) -> None:
    """So many steps are done and published."""
    begun(world)
    for _ in range(400):
        if world.lives[-1].trainer.steps >= steps:
            break
        world.everybody_works()
        world.let(world.lives[-1])
        world.pass_time(0.1)
    assert world.lives[-1].trainer.steps >= steps


def taken_from_another(world: World):
    """A producer whose leases went to another one."""
    begun(world)
    slow, thief = world.hands[:2]
    world.ask(slow, lambda: slow.take(10), slow.follow)
    world.run(world.medium.end_leases(slow.name))
    world.ask(thief, lambda: thief.take(10), thief.follow)
    assert thief.held
    return slow


def late_hand_off(world: World) -> None:
    slow = taken_from_another(world)
    world.ask(slow, slow.hand_off)


def late_retry(world: World) -> None:
    slow = taken_from_another(world)
    world.ask(slow, slow.sample_again)


def late_burial(world: World) -> None:
    slow = taken_from_another(world)
    world.ask(slow, slow.bury)


def hand_off_repeated(world: World) -> None:
    begun(world)
    one = world.hands[0]
    world.ask(one, lambda: one.take(10), one.follow, one.hand_off, lose=True)
    world.let(one)


def settle_of_another_entry(world: World) -> None:
    begun(world)
    world.everybody_works()
    one, other = world.hands[:2]
    one.topic = SCORED
    world.ask(one, lambda: one.take(1))
    held = list(one.held)
    one.kind = "scorer"
    world.ask(one, one.sample_again)
    world.ask(other, lambda: other.bus.settle(world.medium.model.term, held))


def admission_at_another_cursor(world: World) -> None:
    begun(world)
    one = world.hands[0]
    world.ask(one, lambda: one.bus.admit(world.medium.model.term, 1, [(1, b""), (2, b"")]))


def readmission_of_the_dead(world: World) -> None:
    begun(world)
    one = world.hands[0]
    world.ask(one, lambda: one.take(1), one.bury)
    world.ask(one, lambda: one.bus.readmit(world.medium.model.term, [(0, encode(ticket_of(0)))]))


def readmission_after_a_second_loss(world: World) -> None:
    """The server is lost again between the script that sets the cursor and the one that readmits."""
    begun(world)
    world.run(world.medium.wipe())
    world.until(world.waits_at("readmit"))
    world.run(world.medium.wipe())
    while world.waits_at("readmit")():  # a script that the server does not know yet goes twice
        world.let(world.lives[-1], [gate.what for gate in world.lives[-1].gates].index("readmit"))


def empty_server(world: World) -> None:
    trained(world)
    world.run(world.medium.wipe())


def zombie(world: World) -> None:
    """A learner wakes after its successor has begun."""
    trained(world)
    old = world.lives[-1]
    world.start_learner()
    world.until(world.waits_at("lease", world.lives[-1]), world.lives[-1])
    for _ in range(100):
        world.everybody_works()
        if old.over:
            break
        world.let(old)


def go(world: World, life: Life, condition) -> None:
    """This learner and all workers go on, whatever else waits stays where it is."""
    for turn in range(600):
        if condition():
            return
        world.everybody_works()
        world.let(life, turn)
        world.pass_time(0.05)
    raise AssertionError("it does not come to that")


def started(world: World) -> Life:
    world.start_learner()
    return world.lives[-1]


def two_reservations(world: World) -> None:
    """Two learners that saw the same disk at the same time."""
    assert [terms._reserve(world.directory, 1) for _ in range(2)] == [1, 2]


def tickets_lost(world: World) -> None:
    begun(world)
    world.run(world.medium.wipe())


def killed_after_admission(world: World) -> None:
    """The server knows of more than the disk."""
    begun(world)
    world.kill(world.lives[-1])


def killed_and_lost(world: World) -> None:
    """The disk knows of more than the server."""
    trained(world)
    world.kill(world.lives[-1])
    world.run(world.medium.wipe())


def deaths_that_only_the_line_knows(world: World) -> None:
    """A sample died, the learner has heard of it, and the server is lost."""
    begun(world)
    one = world.hands[0]
    world.ask(one, lambda: one.take(1), one.bury)
    for turn in range(80):
        world.let(world.lives[-1], turn)
        world.pass_time(0.1)
    world.run(world.medium.wipe())


def a_third_life(world: World) -> None:
    """What the second one journaled is in the third one's model."""
    trained(world)
    world.kill(world.lives[-1])
    second = started(world)
    go(world, second, lambda: second.trainer.steps == 2)
    world.kill(second)
    third = started(world)
    world.until(lambda: third.trainer.steps >= 2 or world.waits_at("export", third)(), third)
    assert third.trainer.trained[:4] == second.trainer.trained[:4]


def a_zombies_record(world: World) -> None:
    """A learner stands before its journal when its successor begins, and goes on when that one is dead; they have batches of their own."""
    first = started(world)
    go(world, first, lambda: first.trainer.steps == 1)
    if not world.waits_at("_append", first)():
        go(world, first, world.waits_at("_append", first))
    second = started(world)
    world.until(world.waits_at("export", second), second)
    one = world.hands[2]
    one.topic = SCORED
    world.run(world.medium.end_leases(second.name))
    world.ask(one, lambda: one.take(1), one.bury)
    one.topic = "rollouts:t"
    assert world.medium.model.dead, "a sample of the zombie's batch is dead for its successor"
    go(world, second, lambda: second.trainer.steps == 2)
    world.kill(second)
    world.until(lambda: not world.waits_at("_append", first)(), first)
    third = started(world)
    world.until(lambda: third.trainer.steps >= 2 or world.waits_at("export", third)(), third)
    assert third.trainer.trained[:4] == second.trainer.trained[:4]


def a_zombie_that_only_has_to_write_its_result(world: World) -> None:
    first = started(world)
    go(world, first, world.waits_at("write_model", first))
    second = started(world)
    go(world, second, lambda: second.finished)
    go(world, first, lambda: first.over)
    assert not first.finished


def a_lost_log_and_new_workers(world: World) -> None:
    begun(world)
    world.run(world.medium.wipe())
    for hand in list(world.hands):
        world.kill(hand)


def a_checkpoint_while_the_next_batch_is_journaled(world: World) -> None:
    """A learner is one record ahead of its model when it writes a checkpoint, and dies."""
    first = started(world)
    go(world, first, world.waits_at("step", first))
    for _ in range(60):
        world.everybody_works()
        world.pass_time(0.1)
        for gate in [gate for gate in first.gates if gate.what != "step" and not gate.future.done()]:
            gate.future.set_result(False)
        world.settle()
    assert [record.step for record in journal.records(world.directory.journal, 1)] == [1, 2]
    world.until(lambda: len(checkpoint.versions(world.directory.checkpoints)) == 2, first)
    world.kill(first)
