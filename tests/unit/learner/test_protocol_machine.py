"""The protocol of the bus and the learner against a model of a few lines, under faults between any two of their steps.

The learner is the product's own, from the claim of its term to result.json; the bus is the memory twin or the real scripts on a server.
Every call is compared with the model's answer, every state with the model's; every example ends with the run being finished and every
sample in its one place. REFLUX_PROTOCOL_MORE=10 asks for ten times as many examples.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from protocol_media import InMemory, OnServer
from protocol_process import VirtualLoop, controlled
from protocol_world import World

from common.bus.embedded import EmbeddedServer

MORE = int(os.environ.get("REFLUX_PROTOCOL_MORE", "1"))
IN_MEMORY, ON_SERVER = 210 * MORE, 35 * MORE
STEPS_EACH = 60
ANY = st.integers(0, 7)
RUNS = itertools.count()


class Protocol(RuleBasedStateMachine):
    """Rules are what a learner, its workers and their surroundings may do."""

    url: ClassVar[str] = ""
    done: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.world: World | None = None
        self.deaths, self.faults, self.sound = 0, 0, True

    @initialize(
        staleness=st.sampled_from([1, 0]),
        straggler=st.sampled_from(["mask", "retry", "wait"]),
        every=st.integers(1, 3),
        record=st.booleans(),
        faults=st.integers(1, 8),
        ahead=st.integers(0, 35),
    )
    def begin(self, staleness, straggler, every, record, faults, ahead) -> None:
        """The faults come upon a run that has got so far `ahead`."""
        self.faults = faults
        medium = OnServer(self.url, f"run{next(RUNS)}", self.loop) if self.url else InMemory()
        learner = {"max_staleness": staleness, "straggler": straggler, "checkpoint_every": every, "record": record}
        self.world = World(self.loop, medium, **learner)
        self.world.start_learner()
        for number in range(ahead):
            self.world.turn()
            if number % 5 == 0:
                self.world.keep_snapshot()

    def learner(self, which):
        alive = self.world.learners
        return alive[which % len(alive)] if alive else None

    def hand(self, which):
        return self.world.hands[which % 4]

    def count(self, what) -> None:
        self.done[what] += 1

    def fault(self, what) -> None:
        self.faults -= 1
        self.count(what)

    # ---- work ------------------------------------------------------------------------------------------------------------
    @rule(which=ANY, gates=st.lists(ANY, min_size=1, max_size=12))
    def learn(self, which, gates) -> None:
        """Some sub-steps of a learner; 7 lets a second pass."""
        self.count("learn")
        if not self.world.learners:
            self.world.start_learner()
        for gate in gates:
            life = self.learner(which)
            if gate == 7:
                self.world.pass_time()
            elif life:
                self.world.let(life, gate)

    @rule(which=ANY, much=st.integers(20, 40))
    def learn_much(self, which, much) -> None:
        self.count("learn much")
        for _ in range(much):
            self.world.pass_time(0.1)
            life = self.learner(which)
            if life and life.gates:
                self.world.let(life)

    @rule(rounds=st.integers(5, 20))
    def go_on(self, rounds) -> None:
        """Everybody does something in turn."""
        self.count("go on")
        for _ in range(rounds):
            self.world.turn()

    @rule(which=ANY, most=st.integers(1, 4))
    def work(self, which, most) -> None:
        """Lease and hand off."""
        self.count("work")
        hand = self.hand(which)
        self.world.ask(hand, lambda: hand.take(most), hand.follow, hand.hand_off)

    @rule()
    def everybody_works(self) -> None:
        self.count("everybody works")
        self.world.everybody_works()

    @rule(which=ANY, most=st.integers(1, 4), lose=st.booleans())
    def lease(self, which, most, lose) -> None:
        self.count("lease")
        hand = self.hand(which)
        self.world.ask(hand, lambda: hand.take(most), lose=lose)

    @rule(which=ANY, lose=st.booleans())
    def hand_off(self, which, lose) -> None:
        self.count("hand off")
        hand = self.hand(which)
        self.world.ask(hand, hand.follow, hand.hand_off, lose=lose)

    @rule(which=ANY, lose=st.booleans())
    def sample_again(self, which, lose) -> None:
        self.count("sample again")
        self.world.ask(self.hand(which), self.hand(which).sample_again, lose=lose)

    @precondition(lambda self: self.deaths < 3)
    @rule(which=ANY, lose=st.booleans())
    def give_up(self, which, lose) -> None:
        self.count("dead")
        self.deaths += 1
        self.world.ask(self.hand(which), self.hand(which).bury, lose=lose)

    @rule(which=ANY, lose=st.booleans())
    def retry_the_dead(self, which, lose) -> None:
        self.count("dead retried")
        self.world.ask(self.hand(which), self.hand(which).revive, lose=lose)

    @rule(which=ANY)
    def release(self, which) -> None:
        self.count("release")
        self.world.ask(self.hand(which), self.hand(which).release)

    # ---- faults ----------------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.faults)
    @rule(which=ANY, gate=ANY)
    def lose_a_reply_to_a_learner(self, which, gate) -> None:
        self.fault("lost reply")
        if life := self.learner(which):
            self.world.let(life, gate, lose=True)

    @rule(which=ANY)
    def answer_a_worker_at_last(self, which) -> None:
        """Whose reply was lost."""
        hand = self.hand(which)
        for _ in range(len(hand.gates)):
            self.world.let(hand)

    @precondition(lambda self: self.faults)
    @rule(which=ANY)
    def end_leases(self, which) -> None:
        self.fault("ended lease")
        names = [*self.world.gone, *(process.name for process in [*self.world.hands, *self.world.lives])]
        self.world.run(self.world.medium.end_leases(names[which % len(names)]))

    @precondition(lambda self: self.faults)
    @rule(which=ANY)
    def kill_a_worker(self, which) -> None:
        self.fault("worker killed")
        self.world.kill(self.hand(which))

    @precondition(lambda self: self.faults)
    @rule(which=ANY)
    def kill_a_learner(self, which) -> None:
        self.fault("learner killed")
        if life := self.learner(which):
            self.world.kill(life)

    @precondition(lambda self: self.faults)
    @rule(which=ANY, writes=st.integers(1, 12))
    def kill_a_learner_at_a_write(self, which, writes) -> None:
        self.fault("learner killed at a write")
        if life := self.learner(which):
            life.fuse = writes

    @precondition(lambda self: self.faults and len(self.world.learners) == 1)
    @rule()
    def start_a_second_learner(self) -> None:
        """From here on the first one is a zombie."""
        self.fault("zombie")
        self.world.start_learner()

    @precondition(lambda self: self.faults and self.world.snapshots)
    @rule(which=st.integers(0, 9))
    def roll_back(self, which) -> None:
        self.fault("rolled back")
        self.world.run(self.world.medium.roll_back(self.world.snapshots[which % len(self.world.snapshots)]))

    @precondition(lambda self: self.faults)
    @rule()
    def come_back_empty(self) -> None:
        self.fault("empty")
        self.world.run(self.world.medium.wipe())

    @precondition(lambda self: self.faults)
    @rule()
    def lose_the_journals_tail(self) -> None:
        """The learner's machine goes down, and what it wrote last is gone."""
        for life in self.world.learners:
            self.world.kill(life)
        self.fault("torn journal" if self.world.tear_journal() else "no journal to tear")

    # ---- truths ----------------------------------------------------------------------------------------------------------
    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        if self.world:
            self.done["steps"] += 1
            self.sound = False
            self.world.check()
            self.sound = True
            if self.done["steps"] % 4 == 0:
                self.world.keep_snapshot()

    def teardown(self) -> None:
        try:
            if self.world and self.sound:
                self.done["trained"] += max(life.trainer.steps for life in self.world.lives)
                self.world.finish()
        finally:
            self.end()

    def end(self) -> None:
        if self.world:
            self.world.close()
        self.loop.close()
        asyncio.set_event_loop(None)


def explore(monkeypatch, url: str, examples: int) -> Counter[str]:
    """Runs that many examples; returns what was done in them."""
    machine = type("OneProtocol", (Protocol,), {"url": url, "done": Counter()})
    demands = settings(
        max_examples=examples, stateful_step_count=STEPS_EACH, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False, phases=[Phase.generate],
    )  # fmt: skip
    with controlled(monkeypatch):
        run_state_machine_as_test(machine, settings=demands)
    return machine.done


FAULTS = {
    "lost reply",
    "ended lease",
    "worker killed",
    "learner killed",
    "learner killed at a write",
    "zombie",
    "rolled back",
    "empty",
    "torn journal",
}


@pytest.mark.timeout(900)
def test_the_memory_twin_and_the_learner_keep_the_protocol(monkeypatch) -> None:
    done = explore(monkeypatch, "", IN_MEMORY)
    assert done.keys() >= FAULTS
    assert done["steps"] >= 8500


@pytest.mark.redis
@pytest.mark.timeout(900)
async def test_the_real_scripts_and_the_learner_keep_the_protocol(monkeypatch, tmp_path) -> None:
    async with EmbeddedServer.start(tmp_path) as server:
        done = await asyncio.to_thread(explore, monkeypatch, server.url, ON_SERVER)
    assert len(done.keys() & FAULTS) >= 7
    assert done["steps"] >= 1500
