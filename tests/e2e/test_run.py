"""The main job, small: every role a process, a real server, real models."""

import signal

import pytest
from pyarrow import parquet

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(300)]


def balanced(ledger: dict[str, int]) -> bool:
    return ledger["admitted"] == ledger["applied"] + ledger["live"] + ledger["dead"]


def test_a_run_finishes_is_audited_exported_and_known_to_be_finished(example) -> None:
    done = example.go("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass@1" in done.stdout
    result = example.result
    assert (result["steps"], result["samples"], result["ledger"]["applied"]) == (8, 128, 128)
    assert balanced(result["ledger"])
    assert result["pass_at_1"]["n"] == 32
    assert result["staleness"]["max"] <= 4
    assert {"learner", "producer", "scorer", "server", "supervisor"} <= result["cpu_s"].keys()
    assert (example.directory / "model" / "model.safetensors").exists()

    audit = example.go("audit")
    assert (audit.returncode, "every sample was applied once" in audit.stdout) == (0, True), audit.stdout + audit.stderr

    assert example.go("export").returncode == 0
    rows = parquet.read_table(example.directory / "rollouts.parquet").to_pylist()
    assert sorted(row["seq"] for row in rows) == list(range(128))
    for row in rows:
        assert len(row["logprobs"]) == len(row["response_ids"]) == sum(span["tokens"] for span in row["versions"])
        assert len(row["scores"][0]["logprobs"]) == len(row["response_ids"])
        assert row["prompt"].endswith("=")

    again = example.go("run")
    assert (again.returncode, "this run is finished" in again.stdout, "--fresh" in again.stdout) == (0, True, True)
    assert example.go("status").returncode == 0


def test_a_run_that_was_told_to_stop_goes_on_where_it_was(example) -> None:
    example.settings["learner.steps"] = 60
    first = example.start("run")
    example.wait_for(lambda: example.step >= 4, "step 4")
    second = example.go("run")
    assert (second.returncode, "running already" in second.stderr) == (2, True), second.stderr
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert "goes on where it was" in example.output()
    stopped_at = example.step
    assert 4 <= stopped_at < 60
    assert not (example.directory / "result.json").exists()

    done = example.go("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (example.result["steps"], example.result["ledger"]["applied"]) == (60, 960)
    assert balanced(example.result["ledger"])
    steps = [line["step"] for line in example.lines("metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 61))
    assert example.go("audit").returncode == 0
