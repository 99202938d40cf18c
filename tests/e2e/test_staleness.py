"""No token is trained on weights more than S steps newer than those that sampled it, whatever is done about stragglers (P3)."""

from __future__ import annotations

import psutil
import pytest
from by_hand import slowed

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(300)]


def proven_result(example) -> dict:
    """Of a finished run: every sample applied once, the ledger balanced."""
    audit = example.go("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    result = example.result
    ledger, steps, batch = result["ledger"], example.settings["learner.steps"], example.settings["learner.batch_size"]
    assert ledger["admitted"] == ledger["applied"] + ledger["live"] + ledger["dead"]
    assert (ledger["applied"], result["samples"], result["steps"]) == (steps * batch, steps * batch, steps)
    return result


def slowest_producer(example) -> int | None:
    """The second of two, once both are there."""
    children = psutil.Process(example.started[-1].pid).children(recursive=True)
    producers = [child.pid for child in children if "producers" in child.cmdline()]
    return max(producers) if len(producers) == 2 else None


def test_at_s_0_every_token_was_sampled_by_the_weights_that_it_trains(example) -> None:
    example.settings |= {"learner.max_staleness": 0, "learner.steps": 12, "evaluation.prompts": 0}
    done = example.go("run")
    assert done.returncode == 0, done.stdout + done.stderr
    result = proven_result(example)
    assert set(result["staleness"]["histogram"]) == {"0"}
    assert (result["mixed_version_share"], result["versions"], result["retried"]) == (0, 13, {})


@pytest.mark.slow
@pytest.mark.parametrize("straggler", ["mask", "retry", "wait"])
def test_with_a_producer_that_falls_behind_no_token_is_staler_than_s_1(example, straggler: str) -> None:
    example.settings |= {"learner.max_staleness": 1, "learner.steps": 40, "learner.straggler": straggler}
    example.settings |= {"evaluation.prompts": 0, "producer.slots": 8}
    example.start("run", "--producers", "2")
    example.wait_for(lambda: example.step >= 2, "step 2")
    example.wait_for(lambda: slowest_producer(example), "both producers")
    with slowed(slowest_producer(example), 0.1, period_s=0.2):
        assert example.started[-1].wait(200) == 0, example.output()
    result = proven_result(example)
    assert result["staleness"]["max"] == 1
    assert sum(result["staleness"]["histogram"].values()) == result["trained_tokens"]
    masked, again = result["staleness"]["masked_tokens"], result["retried"].get("stale", 0)
    match straggler:
        case "mask":
            assert masked + again > 0
        case "retry":
            assert (masked, again > 0) == (0, True)
        case "wait":
            assert (masked, again) == (0, 0)
