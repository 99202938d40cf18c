"""One test for each rule of the protocol: it passes, and without the rule it goes red.

A scenario is a short piece of one run's life that ends well only if the rule stands. The scripts' rules are tried on a real server.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from protocol_media import InMemory, OnServer
from protocol_mutations import without
from protocol_process import VirtualLoop, controlled
from protocol_scenarios import (
    a_checkpoint_while_the_next_batch_is_journaled,
    a_lost_log_and_new_workers,
    a_third_life,
    a_zombie_that_only_has_to_write_its_result,
    a_zombies_record,
    admission_at_another_cursor,
    deaths_that_only_the_line_knows,
    empty_server,
    hand_off_repeated,
    killed_after_admission,
    killed_and_lost,
    late_burial,
    late_hand_off,
    late_retry,
    readmission_after_a_second_loss,
    readmission_of_the_dead,
    settle_of_another_entry,
    tickets_lost,
    two_reservations,
    zombie,
)
from protocol_world import World

from common.bus.embedded import EmbeddedServer

RUNS = itertools.count()


@dataclass(frozen=True)
class Rule:
    """`rule` stands in `place`; `instead` switches it off."""

    scenario: Callable[[World], None]
    place: str
    rule: str
    instead: str = ""
    straggler: str = "mask"
    checkpoint_every: int = 100

    @property
    def on_server(self) -> bool:
        return self.place.endswith(".lua")


RULES = {
    "only the owner hands off": Rule(late_hand_off, "hand_off.lua", "and owned(topic, entry, seq, attempt, live[seq]) then", "then"),
    "only the owner retries": Rule(late_retry, "retry.lua", "= owned(topic, entry, seq, attempt)", "= 1"),
    "only the owner buries": Rule(late_burial, "bury.lua", "= owned(topic, entry, seq, attempt)", "= 1"),
    "a repeated call is answered as the first": Rule(hand_off_repeated, "prelude.lua", "if call[1] == ARGV[2] then return call[2] end"),
    "settle counts only the entry that live names": Rule(
        settle_of_another_entry,
        "settle.lua",
        "and named(topic, entry, seq, attempt, live[seq])",
        "and redis.call('HEXISTS', key('live'), seq) == 1",
    ),
    "admission is a compare-and-set": Rule(
        admission_at_another_cursor, "admit.lua", "if cursor ~= tonumber(ARGV[4]) then return cursor end"
    ),
    "the dead are not admitted again": Rule(readmission_of_the_dead, "prelude.lua", "and redis.call('HEXISTS', key('dead'), seq) == 0"),
    "readmission raises the cursor": Rule(readmission_after_a_second_loss, "readmit.lua", "highest = math.max(highest, ARGV[i] + 1)"),
    "reconcile sets the ledger's applied": Rule(empty_server, "reconcile.lua", ", 'applied', ARGV[4]"),
    "reconcile sets the cursor": Rule(empty_server, "reconcile.lua", ", tonumber(ARGV[3]))", ")"),
    "a term is one learner's alone": Rule(two_reservations, "learner.terms:_reserve", ".mkdir()\n", ".mkdir(exist_ok=True)\n"),
    "a record is durable before it is settled": Rule(
        a_third_life, "learner.ledger:Ledger._commit", "self._journal.append(record)", "asyncio.sleep(0)"
    ),
    "a term begins with a checkpoint of its own": Rule(
        a_third_life,
        "learner.resume:save_first",
        "checkpoint.save(directory.checkpoints, line.to_json(), resumed.tally.to_json(), trainer.save)",
        "pass",
    ),
    "only records of the checkpoint's term are replayed": Rule(
        a_zombies_record, "learner.resume:_replay", "line.term, after", "min(journal.terms(directory.journal)), after"
    ),
    "the line's cursor rises with its records": Rule(
        killed_and_lost, "learner.line:Line.apply", "self.cursor = max(self.cursor, record.cursor, max(record.seqs) + 1)", "pass"
    ),
    "the line takes the server's cursor": Rule(
        killed_after_admission, "learner.reconcile:_agree", "line.cursor = max(line.cursor, await", "_ = max(line.cursor, await", "wait"
    ),
    "the server's ledger takes the line's applied": Rule(empty_server, "learner.reconcile:_agree", "line.applied, line,", "0, line,"),
    "the line's dead are the server's": Rule(
        deaths_that_only_the_line_knows, "learner.reconcile:_agree", "line.dead, line.lives", "{}, line.lives"
    ),
    "what is nowhere is admitted again": Rule(tickets_lost, "learner.reconcile:_readmit", "line.missing(await bus.live())", "[]"),
    "the newest version is published again": Rule(
        a_lost_log_and_new_workers, "learner.reconcile:_publish_again", "await bus.publish(term, payload, keep)", "pass"
    ),
    "a checkpoint has the line of its own step": Rule(
        a_checkpoint_while_the_next_batch_is_journaled,
        "learner.loop:Loop._after_step",
        "after_step(self._line)",
        "after_step(self._ledger.line.to_json())",
        checkpoint_every=1,
    ),
    "a superseded learner writes no result": Rule(
        a_zombie_that_only_has_to_write_its_result, "learner.service:_Life._finish", "if state.term > self._line.term:", "if False:"
    ),
    "a lower term is refused": Rule(
        zombie,
        "prelude.lua",
        "if tonumber(term) < seen then return redis.error_reply('SUPERSEDED ' .. string.format('%d', seen)) end",
    ),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with asyncio.Runner() as runner:
        started = EmbeddedServer.start(tmp_path_factory.mktemp("server"))
        yield runner.run(started.__aenter__()).url
        runner.run(started.__aexit__(None, None, None))


def play(monkeypatch, rule: Rule, url: str) -> None:
    """The scenario, then the run to its end."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    medium = OnServer(url, f"rule{next(RUNS)}", loop) if rule.on_server else InMemory()
    with controlled(monkeypatch):
        world = World(loop, medium, checkpoint_every=rule.checkpoint_every, straggler=rule.straggler)
        try:
            rule.scenario(world)
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
    play(monkeypatch, rule, url)


@pytest.mark.redis
@pytest.mark.parametrize("name", RULES)
def test_without_the_rule_it_does_not(monkeypatch, url, name) -> None:
    rule = RULES[name]
    without(monkeypatch, rule.place, rule.rule, rule.instead)
    with pytest.raises((AssertionError, OSError)):
        play(monkeypatch, rule, url)
