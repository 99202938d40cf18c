"""Who waits for whom, as a person reads it in `reflux status`: whichever place is slow, the line names it (P7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from by_hand import ByHand, roles_by_hand, slowed

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(300)]

VERDICT = {
    "sampling": "the producers are the bottleneck",
    "scoring": "the scorers are the bottleneck",
    "training": "the learner is the bottleneck",
    "publishing": "publishing weights is the bottleneck",
    "Redis": "Redis is the bottleneck",
}
READINGS = 5


@contextmanager
def switched_on(file: Path) -> Iterator[None]:
    """What tests/e2e/slow_learner.py looks at."""
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def majority_names(hand: ByHand, verdict: str) -> bool:
    """Most of a few readings; no more of them than it takes."""
    lines: list[str] = []
    while max(right := sum(verdict in line for line in lines), len(lines) - right) <= READINGS // 2:
        lines.append(hand.who_waits_for_whom())
    print(f"{verdict}: {lines}")  # shown where the test fails
    return right > READINGS // 2


@pytest.mark.slow
def test_the_line_names_the_place_that_is_slow(example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFLUX_SLOW", str(tmp_path))
    example.settings |= {
        "learner.steps": 100_000,
        "evaluation.prompts": 0,
        "service.heartbeat_s": 0.6,
        "loss.kind": "python:slow_learner:loss",
    }
    with roles_by_hand(example) as hand:
        hand.start("learner", program="slow_learner.py")
        producer, scorer = hand.start("producers"), hand.start("scorers")
        hand.wait_for(lambda: example.step >= 2, "step 2")
        slow: dict[str, AbstractContextManager[None]] = {
            "sampling": slowed(producer.process.pid, 0.05),
            "scoring": slowed(scorer.process.pid, 0.05),
            "training": switched_on(tmp_path / "training"),
            "publishing": switched_on(tmp_path / "publishing"),
            "Redis": slowed(hand.server.process.pid, 0.06, period_s=0.5),
        }
        wrong = []
        for place, how in slow.items():
            with how:
                begin = example.step
                hand.wait_for(lambda begin=begin: example.step > begin, f"a step with slow {place}")
                wrong += [] if majority_names(hand, VERDICT[place]) else [place]
        assert not wrong
        assert all(role.process.poll() is None for role in hand.roles), hand.all_said()


def test_a_run_without_a_scorer_or_without_a_producer_says_so(example) -> None:
    example.settings |= {"learner.steps": 100_000, "evaluation.prompts": 0, "service.heartbeat_s": 0.4}
    with roles_by_hand(example) as hand:
        learner, producer = hand.start("learner"), hand.start("producers")
        window = 5 * example.settings["learner.batch_size"]
        hand.wait_for(example.directory.exists, "the run's directory")
        hand.wait_for(lambda: f"no scorer is there ({window} rollouts wait for one)" in hand.who_waits_for_whom(), "the missing scorer")
        hand.wait_for(lambda: "waits  for=scored" in learner.said, "the learner to say what it waits for")
        hand.start("scorers")
        hand.wait_for(lambda: example.step >= 1, "step 1")
        producer.process.kill()
        hand.wait_for(lambda: f"no producer is there ({window} tickets wait for one)" in hand.who_waits_for_whom(), "the missing producer")
