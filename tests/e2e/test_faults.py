"""Kills at any instant and a server that comes back empty: the run finishes and every sample has its effect exactly once (P1, P2)."""

import os
import shutil
import signal
import time

import pytest
from pyarrow import parquet

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.redis, pytest.mark.timeout(400)]

STEPS, BATCH = 120, 16


def assert_finished_with_every_sample_applied_once(example) -> None:
    assert example.started[-1].wait(200) == 0, example.output()
    result = example.result
    assert (result["steps"], result["samples"], result["ledger"]["applied"]) == (STEPS, STEPS * BATCH, STEPS * BATCH)
    assert result["ledger"]["admitted"] == result["ledger"]["applied"] + result["ledger"]["live"] + result["ledger"]["dead"]
    assert result["staleness"]["max"] <= 4
    audit = example.go("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    example.go("export")
    seqs = parquet.read_table(example.directory / "rollouts.parquet", columns=["seq"])["seq"].to_pylist()
    assert len(seqs) == len(set(seqs)) == STEPS * BATCH


def restart_server_empty(example) -> None:
    """kill -9, its data gone, before the supervisor can look."""
    supervisor, server = example.started[-1], example.server_pid
    supervisor.send_signal(signal.SIGSTOP)
    os.kill(server, signal.SIGKILL)
    for path in example.directory.rglob("appendonlydir*"):
        shutil.rmtree(path)
    for path in [*example.directory.rglob("*.aof"), *example.directory.rglob("*.rdb")]:
        path.unlink(missing_ok=True)
    supervisor.send_signal(signal.SIGCONT)
    example.wait_for(lambda: example.server_pid != server, "another server")


def test_scorer_producer_and_learner_killed_and_an_empty_server_in_one_run(example) -> None:
    example.settings["learner.steps"] = STEPS
    example.start("run")
    for threshold, strike in (
        (3, lambda: example.kill("scorers")),
        (6, lambda: example.kill("producers")),
        (10, lambda: example.kill("learner")),
        (14, lambda: restart_server_empty(example)),
    ):
        example.wait_for(lambda threshold=threshold: example.step >= threshold, f"step {threshold}")
        strike()
        reached = example.step
        example.wait_for(lambda reached=reached: example.step >= min(STEPS, reached + 1), "progress after the blow")
    assert_finished_with_every_sample_applied_once(example)
    assert "killed by SIGKILL" in example.output()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["scorers", "producers", "learner"])
def test_a_role_killed_three_times(example, module: str) -> None:
    example.settings["learner.steps"] = STEPS
    example.start("run")
    for threshold in (2, 9, 17):
        example.wait_for(lambda threshold=threshold: example.step >= threshold, f"step {threshold}")
        example.kill(module)
    assert_finished_with_every_sample_applied_once(example)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2], ids=["replicas", "stages"])
def test_a_killed_rank_ends_the_other_with_a_sentence_and_the_run_goes_on(example, stages: int) -> None:
    example.settings |= {"learner.steps": STEPS, "learner.ranks": 2, "learner.pipeline_parallel": stages}
    example.start("run")
    example.wait_for(lambda: example.step >= 3, "step 3")
    first = example.process_of("learner")
    (other,) = first.children()
    other.kill()
    example.wait_for(
        lambda: (now := example.process_of("learner")) is not None and now.pid not in {first.pid, other.pid}, "another learner"
    )
    assert_finished_with_every_sample_applied_once(example)
    assert "learner rank 1 died with exit code -9: start the learner again, it resumes" in example.output()
    assert "Traceback" not in example.output()


@pytest.mark.slow
def test_a_killed_supervisor_takes_everything_with_it_and_the_run_goes_on_later(example) -> None:
    example.settings["learner.steps"] = STEPS
    supervisor = example.start("run")
    example.wait_for(lambda: example.step >= 5, "step 5")
    learner = example.process_of("learner")
    supervisor.kill()
    supervisor.wait()
    learner.wait(60)
    example.start("run")
    assert_finished_with_every_sample_applied_once(example)


@pytest.mark.slow
def test_a_server_away_for_ten_seconds_stops_nobody(example) -> None:
    example.settings["learner.steps"] = STEPS
    example.start("run")
    example.wait_for(lambda: example.step >= 5, "step 5")
    roles = {module: example.process_of(module).pid for module in ("learner", "producers", "scorers")}
    os.kill(example.server_pid, signal.SIGSTOP)
    time.sleep(10)
    os.kill(example.server_pid, signal.SIGCONT)
    reached = example.step
    example.wait_for(lambda: example.step > reached, "progress after the outage")
    assert roles == {module: example.process_of(module).pid for module in roles}
    assert_finished_with_every_sample_applied_once(example)


@pytest.mark.slow
def test_two_of_each_role_finish_too(example) -> None:
    example.settings["learner.steps"] = STEPS
    example.start("run", "--producers", "2", "--scorers", "2", "--learner-ranks", "2")
    assert_finished_with_every_sample_applied_once(example)
