"""Each role by itself, as on several hosts: joined by a server and the weight store alone, started in any order, ended by no outage."""

from __future__ import annotations

import os
import signal
import time

import pytest
from by_hand import Role, roles_by_hand

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(300)]


def assert_proven(example, steps: int) -> None:
    result = example.result
    assert (result["steps"], result["ledger"]["applied"]) == (steps, steps * example.settings["learner.batch_size"])
    assert result["ledger"]["admitted"] == result["ledger"]["applied"] + result["ledger"]["live"] + result["ledger"]["dead"]
    audit = example.go("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def sentence(role: Role, code: int) -> str:
    """The last thing that an ended role said."""
    assert role.process.wait(100) == code, role.said
    assert "Traceback" not in role.said
    return role.last_line


def test_roles_started_one_by_one_say_what_they_wait_for_and_finish_together(example) -> None:
    example.settings |= {"learner.steps": 10, "evaluation.prompts": 16}
    with roles_by_hand(example) as hand:
        producer, scorer = hand.start("producers"), hand.start("scorers")
        hand.wait_for(lambda: "waits  for=tickets" in producer.said, "the producer to say what it waits for")
        hand.wait_for(lambda: "waits  for=rollouts" in scorer.said, "the scorer to say what it waits for")
        learner = hand.start("learner", "--nproc", "2")
        assert learner.process.wait(120) == 0, hand.all_said()
        assert (producer.process.poll(), scorer.process.poll()) == (None, None), "they serve until they are told to stop"
        assert (producer.stop(), scorer.stop()) == (0, 0), hand.all_said()
        assert_proven(example, 10)
        assert "is finished" in sentence(hand.start("learner"), 0)


@pytest.mark.slow
def test_a_second_learner_is_refused_unless_it_takes_over_and_the_first_is_not_restarted(example) -> None:
    example.settings |= {"learner.steps": 100_000, "evaluation.prompts": 0}
    with roles_by_hand(example) as hand:
        run = example.start("run")
        example.wait_for(lambda: example.step >= 1, "step 1")
        refused = hand.start("learner")
        assert "--take-over" in sentence(refused, 2)
        begin = example.step
        example.wait_for(lambda: example.step > begin, "a step after the refusal")
        second = hand.start("learner", "--take-over")
        assert run.wait(200) == 2, example.output()
        assert "has taken over this run" in example.output().splitlines()[-1]
        assert "learner-0 ended" not in example.output(), "it was started again"
        hand.wait_for(lambda: "waits  for=scored" in second.said, "the second learner to go on")
        assert second.stop() == 0, second.said


@pytest.mark.slow
@pytest.mark.chaos
def test_a_server_that_hangs_for_ten_seconds_and_then_dies_ends_no_role(example) -> None:
    steps = 150
    example.settings |= {"learner.steps": steps, "evaluation.prompts": 0}
    with roles_by_hand(example) as hand:
        learner = hand.start("learner")
        others = [hand.start("producers"), hand.start("scorers")]
        hand.wait_for(lambda: example.step >= 3, "step 3")
        os.kill(hand.server.process.pid, signal.SIGSTOP)
        time.sleep(10)
        os.kill(hand.server.process.pid, signal.SIGCONT)
        reached = example.step
        hand.wait_for(lambda: example.step > reached + 5, "progress after the hanging")
        hand.server.kill()
        time.sleep(3)
        hand.server.start()
        assert example.step < steps - 5, "the outages came after the run's end"
        assert learner.process.wait(200) == 0, hand.all_said()
        assert [role.stop() for role in others] == [0, 0], hand.all_said()
        assert_proven(example, steps)
        assert all("the server answers again" in role.said for role in hand.roles)
