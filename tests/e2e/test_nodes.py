"""A learner of two machines, here two commands on one, that meet at an address of the first."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
import pytest
from by_hand import CONFIG, ByHand, Role, roles_by_hand
from test_roles import assert_proven, sentence

from common.bus.embedded import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]


ALONE = """
import json, sys
from pathlib import Path
from common.config import load_config
from learner.ranks import build_trainer
from learner.replay import replay
print(json.dumps([one.again.loss for one in replay(load_config(Path(sys.argv[1]), sys.argv[2:]), build_trainer)]))
"""


def in_one_process(hand: ByHand) -> list[float]:
    """The losses of a learner of one rank over the run's journal."""
    example = hand.example
    sets = [f"{key}={value}" for key, value in {**example.settings, "run.dir": example.runs}.items()]
    command = [sys.executable, "-c", ALONE, str(CONFIG), *sets]
    done = subprocess.run(command, env=hand.environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    losses: list[float] = json.loads(done.stdout.splitlines()[-1])
    return losses


def meeting() -> tuple[str, ...]:
    return ("--nproc", "1", "--nnodes", "2", "--rdzv", f"127.0.0.1:{free_port()}")


def two_nodes_at_work(hand: ByHand) -> tuple[Role, Role]:
    """Node 0 and node 1 of a long run that has begun to train."""
    hand.example.settings |= {"learner.steps": 100_000, "evaluation.prompts": 0}
    nodes = meeting()
    second, first = (hand.start("learner", *nodes, "--node-rank", rank) for rank in ("1", "0"))
    hand.start("producers")
    hand.start("scorers")
    hand.wait_for(lambda: hand.example.step >= 2, "step 2")
    return first, second


def test_two_nodes_are_one_learner(example) -> None:
    example.settings |= {"learner.steps": 6, "evaluation.prompts": 16}
    with roles_by_hand(example) as hand:
        nodes = meeting()
        second, first = (hand.start("learner", *nodes, "--node-rank", rank) for rank in ("1", "0"))
        producer, scorer = hand.start("producers"), hand.start("scorers")
        assert first.process.wait(200) == 0, hand.all_said()
        assert second.process.wait(100) == 0, hand.all_said()
        assert (producer.stop(), scorer.stop()) == (0, 0), hand.all_said()
        assert_proven(example, 6)
        alone = in_one_process(hand)
    together = {line["step"]: line["loss"] for line in example.lines("metrics.jsonl") if "loss" in line}
    assert sorted(together) == [1, 2, 3, 4, 5, 6]
    assert min(together.values()) > 1e-3, "a loss of nothing proves nothing"
    assert alone == pytest.approx([together[step] for step in sorted(together)], abs=1e-5)


def test_a_node_that_does_not_come_is_named_with_what_was_waited_for(example) -> None:
    with roles_by_hand(example) as hand:
        alone = hand.start("learner", *meeting(), "--set", "learner.join_timeout_s=2")
        assert "not all 2 ranks came: start the learner on every node" in sentence(alone, 2)


def test_nodes_with_other_configurations_are_refused(example) -> None:
    with roles_by_hand(example) as hand:
        nodes = meeting()
        first = hand.start("learner", *nodes)
        second = hand.start("learner", *nodes, "--node-rank", "1", "--set", "learner.batch_size=32")
        assert "learner rank 1 has another configuration than rank 0" in sentence(first, 2)
        assert "learner rank 1 died" in sentence(second, 1)


def test_a_node_that_is_told_twice_to_stop_ends_the_learner_with_a_sentence(example) -> None:
    with roles_by_hand(example) as hand:
        first, second = two_nodes_at_work(hand)
        second.process.send_signal(signal.SIGTERM)
        hand.wait_for(lambda: "rank 0 ends the run" in second.said, "the second node to say who ends the run")
        assert second.stop() == 1, second.said
        assert "start the learner on every node again" in sentence(first, 1)


def test_a_node_whose_rank_is_killed_ends_the_learner_with_a_sentence(example) -> None:
    with roles_by_hand(example) as hand:
        first, second = two_nodes_at_work(hand)
        (rank,) = psutil.Process(second.process.pid).children()
        rank.kill()
        assert "a rank on another node is gone" in sentence(first, 1)
        assert "learner rank 1 died with exit code -9" in sentence(second, 1)


def test_a_silent_rank_of_another_node_ends_the_learner_with_a_sentence(example) -> None:
    example.settings["learner.rank_timeout_s"] = 30
    with roles_by_hand(example) as hand:
        first, second = two_nodes_at_work(hand)
        (rank,) = psutil.Process(second.process.pid).children()
        rank.suspend()
        try:
            assert "a rank on another node is gone" in sentence(first, 1)
        finally:
            rank.kill()


def test_a_first_node_that_stands_still_ends_the_others_with_a_sentence(example) -> None:
    example.settings["learner.rank_timeout_s"] = 30
    with roles_by_hand(example) as hand:
        first, second = two_nodes_at_work(hand)
        first.process.send_signal(signal.SIGSTOP)  # no connection breaks
        assert "learner rank 1 died with exit code 1" in sentence(second, 1)
        assert "rank 0" in second.said
