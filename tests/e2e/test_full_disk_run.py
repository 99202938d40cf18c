"""A disk without room under a whole run in processes of its own: the run waits, says which disk to make room on, and goes on by itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
from by_hand import ROOT, roles_by_hand
from watcher import Watcher

sys.path.append(str(ROOT / "tests" / "unit" / "learner"))
from disk_of_its_own import SmallDisk, small_disk

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(500)]

STEPS, BATCH = 60, 16


def filled(disk: SmallDisk, says: Callable[[], str], words: str) -> Callable[[], bool]:
    """Whether the status says so; what the run frees meanwhile is taken too."""

    def look() -> bool:
        disk.fill()
        return words in says()

    return look


def assert_whole(example) -> None:
    result = example.result
    assert (result["steps"], result["ledger"]["applied"], result["ledger"]["live"]) == (STEPS, STEPS * BATCH, 0)
    audit = example.go("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_learner_without_room_waits_and_the_run_finishes_once_there_is_some(example) -> None:
    example.settings |= {"learner.steps": STEPS, "evaluation.prompts": 0}
    with small_disk(example.runs, "64m") as disk, roles_by_hand(example) as hand:
        learner, *workers = (hand.start(module) for module in ("learner", "producers", "scorers"))
        hand.wait_for(lambda: example.step >= 4, "step 4")
        hand.wait_for(filled(disk, hand.who_waits_for_whom, "make room"), "the status that names the disk")
        watcher = Watcher(hand.server.url)
        before = watcher.snapshot().state
        time.sleep(2.0)
        after = watcher.snapshot().state
        assert after.applied - before.applied <= 2 * BATCH, "it pauses"
        assert after.applied < STEPS * BATCH
        assert all(role.process.poll() is None for role in hand.roles), hand.all_said()
        disk.make_room()
        hand.wait_for(lambda: learner.process.poll() is not None, "the end of the run")
        assert learner.process.returncode == 0, hand.all_said()
        assert all(worker.process.poll() is None for worker in workers), hand.all_said()
        assert_whole(example)


def test_a_run_and_its_server_without_room_wait_and_finish_once_there_is_some(example) -> None:
    example.settings |= {"learner.steps": STEPS, "evaluation.prompts": 0}
    with small_disk(example.runs, "64m") as disk:
        supervisor = example.start("run")
        example.wait_for(lambda: example.step >= 4, "step 4")
        example.wait_for(filled(disk, lambda: example.go("status").stdout, "make room"), "the status that names the disk")
        time.sleep(2.0)
        assert supervisor.poll() is None, example.output()
        disk.make_room()
        assert supervisor.wait(200) == 0, example.output()
        assert_whole(example)
