"""A learner, or one of its ranks, killed by the system in the middle of a checkpoint that it writes beside training."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from by_hand import CONFIG, ROOT, ByHand, Role, roles_by_hand
from test_roles import assert_proven, sentence

from learner import checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize("point", ["checkpoint_copied", "checkpoint_half_written", "checkpoint_written", "checkpoint_renamed"])
def test_the_run_goes_on_from_the_newest_that_is_whole(example, point, ranks) -> None:
    with roles_by_hand(example) as hand:
        doomed = at_work(hand, ranks)
        (orders(hand) / "order").write_text(f"kill {point}")
        assert doomed.process.wait(200) == -signal.SIGKILL, hand.all_said()
        assert bool(what_was_begun(hand)) == (point != "checkpoint_renamed")
        assert_goes_on(hand, ranks)


@pytest.mark.parametrize(("stages", "point"), [(1, "shard_begun_by_1"), (2, "shard_torn_by_1")], ids=["replicas", "stages"])
def test_a_rank_killed_while_it_writes_its_part_ends_the_others_and_the_older_one_counts(example, stages, point) -> None:
    example.settings |= {"learner.ranks": 2, "learner.pipeline_parallel": stages}
    with roles_by_hand(example) as hand:
        doomed = at_work(hand, "2")
        (orders(hand) / "order").write_text(f"kill {point}")
        assert "learner rank 1 died with exit code -9: start the learner again, it resumes" in sentence(doomed, 1)
        assert (orders(hand) / "obeyed").exists()
        (begun,) = what_was_begun(hand)
        assert not (begun / "model" / "metadata.json").exists(), "it is no checkpoint"
        assert_goes_on(hand, "2")


def orders(hand: ByHand) -> Path:
    return hand.example.runs.parent / "orders"


def at_work(hand: ByHand, ranks: str) -> Role:
    """A learner that obeys orders, beyond its first checkpoint; and who works for it."""
    example = hand.example
    example.settings |= {"learner.steps": 20, "learner.checkpoint_async": True, "evaluation.prompts": 16}
    orders(hand).mkdir()
    hand.start("producers")
    hand.start("scorers")
    sets = [f"--set={key}={value}" for key, value in {**example.settings, "run.dir": example.runs}.items()]
    program = str(ROOT / "tests" / "chaos" / "doomed.py")
    command = [sys.executable, program, str(orders(hand)), "learner", "--config", str(CONFIG), *sets, "--nproc", ranks]
    doomed = hand.start_command(command, "doomed")
    hand.wait_for(lambda: len(checkpoint.versions(example.directory / "checkpoints")) > 1, "a checkpoint beside the first")
    return doomed


def what_was_begun(hand: ByHand) -> list[Path]:
    """Checkpoints without a name yet, all of later steps than the newest that has one."""
    root = hand.example.directory / "checkpoints"
    newest, begun = checkpoint.newest(root), list(root.glob(".term*.tmp"))
    assert newest is not None
    assert all(path.name.strip(".").removesuffix(".tmp") > newest.directory.name for path in begun)
    return begun


def assert_goes_on(hand: ByHand, ranks: str) -> None:
    producer, scorer, _ = hand.roles
    again = hand.start("learner", "--nproc", ranks)
    assert again.process.wait(200) == 0, hand.all_said()
    assert (producer.stop(), scorer.stop()) == (0, 0), hand.all_said()
    assert_proven(hand.example, 20)
