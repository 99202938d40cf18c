"""The same numbers again: from the journal, and from a second run."""

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(600)]

DETERMINISTIC = {"run.deterministic": "true", "learner.max_staleness": 0, "learner.steps": 6, "evaluation.prompts": 32}


def figures(example) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in example.lines("metrics.jsonl") if "loss" in line]


def test_two_deterministic_runs_and_a_replay_have_the_same_losses_to_the_last_bit(example) -> None:
    example.settings |= DETERMINISTIC
    first = example.go("run")
    assert first.returncode == 0, first.stdout + first.stderr
    once = figures(example)

    again = example.go("replay")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "6 steps trained again, 1 to 6: every loss and gradient norm is the same" in again.stdout

    second = example.go("run", "--fresh")
    assert second.returncode == 0, second.stdout + second.stderr
    assert figures(example) == once
    assert len(once) == 6

    metrics = example.directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": 0.', '"loss": 1.', 1))
    spoiled = example.go("replay")
    assert (spoiled.returncode, "1 differ, the first is step 1" in spoiled.stdout) == (1, True), spoiled.stdout + spoiled.stderr
