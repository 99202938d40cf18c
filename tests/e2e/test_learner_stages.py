"""A learner of two processes, each with half of the layers."""

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_run_on_two_stages_balances_and_trains_again_to_the_last_bit(example) -> None:
    example.settings |= {"learner.ranks": 2, "learner.pipeline_parallel": 2, "learner.steps": 6, "evaluation.prompts": 32}
    run = example.go("run")
    assert run.returncode == 0, run.stdout + run.stderr

    audit = example.go("audit")
    assert (audit.returncode, "every sample was applied once" in audit.stdout) == (0, True), audit.stdout + audit.stderr

    again = example.go("replay")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "6 steps trained again, 1 to 6: every loss and gradient norm is the same" in again.stdout


def test_more_stages_than_layers_end_the_run_with_one_sentence(example) -> None:
    example.settings |= {"learner.ranks": 3, "learner.pipeline_parallel": 3}
    run = example.go("run")
    assert run.returncode == 2, run.stdout + run.stderr
    assert "2 layers are too few for 3 pipeline stages: set learner.pipeline_parallel to 2 or less" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr
