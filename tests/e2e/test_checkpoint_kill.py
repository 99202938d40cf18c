"""A learner killed by the system in the middle of a checkpoint that it writes beside training."""

from __future__ import annotations

import signal
import sys

import pytest
from by_hand import CONFIG, ROOT, roles_by_hand
from test_roles import assert_proven

from learner import checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize("point", ["checkpoint_copied", "checkpoint_half_written", "checkpoint_written", "checkpoint_renamed"])
def test_the_run_goes_on_from_the_newest_that_is_whole(example, point, ranks) -> None:
    example.settings |= {"learner.steps": 20, "learner.checkpoint_async": True, "evaluation.prompts": 16}
    orders, root = example.runs.parent / "orders", example.directory / "checkpoints"
    orders.mkdir()
    with roles_by_hand(example) as hand:
        producer, scorer = hand.start("producers"), hand.start("scorers")
        sets = [f"--set={key}={value}" for key, value in {**example.settings, "run.dir": example.runs}.items()]
        doomed = [sys.executable, str(ROOT / "tests" / "chaos" / "doomed.py"), str(orders), "learner", "--config", str(CONFIG), *sets]
        first = hand.start_command([*doomed, "--nproc", ranks], "doomed")
        hand.wait_for(lambda: len(checkpoint.versions(root)) > 1, "a checkpoint beside the first")
        (orders / "order").write_text(f"kill {point}")
        assert first.process.wait(200) == -signal.SIGKILL, hand.all_said()
        newest = checkpoint.newest(root)
        assert newest is not None
        half = list(root.glob(".term*.tmp"))
        assert bool(half) == (point != "checkpoint_renamed")
        assert all(path.name.strip(".").removesuffix(".tmp") > newest.directory.name for path in half)
        second = hand.start("learner", "--nproc", ranks)
        assert second.process.wait(200) == 0, hand.all_said()
        assert (producer.stop(), scorer.stop()) == (0, 0), hand.all_said()
        assert_proven(example, 20)
