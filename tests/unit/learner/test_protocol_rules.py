"""One test for each rule of the protocol: it passes, and without the rule it goes red.

A scenario is a short piece of one run's life that ends well only if the rule stands. The scripts' rules are tried on a real server.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from learner_fakes import ticket_of
from protocol_media import InMemory, OnServer
from protocol_mutations import without
from protocol_process import VirtualLoop, controlled
from protocol_world import World

from common.bus.base import SCORED
from common.bus.embedded import EmbeddedServer
from common.codec import encode

RUNS = itertools.count()


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


@dataclass(frozen=True)
class Rule:
    """`rule` stands in `place`; `instead` switches it off."""

    scenario: Callable[[World], None]
    place: str
    rule: str
    instead: str = ""

    @property
    def on_server(self) -> bool:
        return self.place.endswith(".lua")


RULES = {
    "only the owner hands off": Rule(late_hand_off, "hand_off.lua", "and owned(topic, entry, seq, attempt) then", "then"),
    "only the owner retries": Rule(late_retry, "retry.lua", "= owned(topic, entry, seq, attempt)", "= 1"),
    "only the owner buries": Rule(late_burial, "bury.lua", "= owned(topic, entry, seq, attempt)", "= 1"),
    "a repeated call is answered as the first": Rule(hand_off_repeated, "prelude.lua", "if call[1] == ARGV[2] then return call[2] end"),
    "settle counts only the entry that live names": Rule(
        settle_of_another_entry, "settle.lua", "and named(topic, entry, seq, attempt)", "and redis.call('HEXISTS', key('live'), seq) == 1"
    ),
    "admission is a compare-and-set": Rule(
        admission_at_another_cursor, "admit.lua", "if cursor ~= tonumber(ARGV[4]) then return cursor end"
    ),
    "the dead are not admitted again": Rule(readmission_of_the_dead, "prelude.lua", "and redis.call('HEXISTS', key('dead'), seq) == 0"),
    "readmission raises the cursor": Rule(readmission_after_a_second_loss, "readmit.lua", "highest = math.max(highest, ARGV[i] + 1)"),
    "reconcile sets the ledger's applied": Rule(empty_server, "reconcile.lua", ", 'applied', ARGV[4]"),
    "reconcile sets the cursor": Rule(empty_server, "reconcile.lua", ", tonumber(ARGV[3]))", ")"),
    "a lower term is refused": Rule(
        zombie, "prelude.lua", "if tonumber(term) < seen then return redis.error_reply('SUPERSEDED ' .. string.format('%d', seen)) end"
    ),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with asyncio.Runner() as runner:
        started = EmbeddedServer.start(tmp_path_factory.mktemp("server"))
        yield runner.run(started.__aenter__()).url
        runner.run(started.__aexit__(None, None, None))


def play(monkeypatch, scenario: Callable[[World], None], url: str) -> None:
    """The scenario, then the run to its end."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    medium = OnServer(url, f"rule{next(RUNS)}", loop) if url else InMemory()
    with controlled(monkeypatch):
        world = World(loop, medium)
        try:
            scenario(world)
            world.check()
            world.finish()
        finally:
            world.close()
            loop.close()
            asyncio.set_event_loop(None)


@pytest.mark.redis
@pytest.mark.parametrize("name", RULES)
def test_with_the_rule_all_ends_well(monkeypatch, url, name) -> None:
    rule = RULES[name]
    play(monkeypatch, rule.scenario, url if rule.on_server else "")


@pytest.mark.redis
@pytest.mark.parametrize("name", RULES)
def test_without_the_rule_it_does_not(monkeypatch, url, name) -> None:
    rule = RULES[name]
    without(monkeypatch, rule.place, rule.rule, rule.instead)
    with pytest.raises((AssertionError, ExceptionGroup)):
        play(monkeypatch, rule.scenario, url if rule.on_server else "")
