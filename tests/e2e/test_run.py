"""The main job, small: every role a process, a real server, real models."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


def readme_example() -> str:
    (script,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert "examples/arithmetic/run.toml" in script
    return script


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

    script = readme_example().replace("examples/arithmetic/run.toml", str(example.directory / "config.toml"))
    python = subprocess.run([sys.executable, "-c", script], env=example.environment, capture_output=True, text=True, check=False)
    assert python.returncode == 0, python.stderr
    assert python.stdout.startswith(f"finished {example.directory / 'model'} {{'before'")

    again = example.go("run")
    assert (again.returncode, "this run is finished" in again.stdout, "--fresh" in again.stdout) == (0, True, True)
    assert example.go("status").returncode == 0

    before = (example.directory / "result.json").read_bytes()
    other = example.go("run", "--set=optimizer.lr=0.5")
    assert (other.returncode, "optimizer.lr was 0.001 and is 0.5" in other.stderr) == (2, True), other.stderr
    assert (example.directory / "result.json").read_bytes() == before


def assert_nobody_else_gets_in(example) -> None:
    """A second supervisor, a second learner, and a producer with a wrong password: one sentence each, and the run goes on."""
    second = example.go("run")
    assert (second.returncode, "running already" in second.stderr) == (2, True), second.stderr
    config = str(example.directory / "config.toml")
    address = (example.directory / "bus.json").read_text().rpartition("@")[2].partition('"')[0]
    for module, url, sentence in (("learner", "", "another learner"), ("producers", f"redis://:wrong@{address}", "password")):
        command = [sys.executable, "-m", module, "--config", config, "--set", f'bus.url="{url}"']
        done = subprocess.run(command, env=example.environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert sentence in done.stderr.splitlines()[-1]


def has_trained_on_all(example) -> bool:
    """Less than a batch is left, and the step of the last batch is on record: a batch counts as applied before its step is computed."""
    said, batch = example.go("status").stdout, example.settings["learner.batch_size"]
    found = re.search(r"live (\d+) \+ applied (\d+)", said)
    return bool(found) and "admits no samples" in said and int(found[1]) < batch and example.step * batch == int(found[2])


def test_a_run_that_was_told_to_stop_goes_on_where_it_was(example) -> None:
    example.settings["learner.steps"] = 200
    first = example.start("run")
    example.wait_for(lambda: example.step >= 4, "step 4")
    assert example.go("pause").returncode == 0
    example.wait_for(lambda: has_trained_on_all(example), "the end of what is in flight")
    paused_at = example.step
    assert_nobody_else_gets_in(example)
    assert example.step == paused_at
    assert example.go("resume").returncode == 0
    example.wait_for(lambda: example.step > paused_at, "progress after the pause")
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 0
    assert "goes on where it was" in example.output()
    stopped_at = example.step
    assert 4 <= stopped_at < 200
    assert not (example.directory / "result.json").exists()

    done = example.go("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (example.result["steps"], example.result["ledger"]["applied"]) == (200, 3200)
    assert balanced(example.result["ledger"])
    steps = [line["step"] for line in example.lines("metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 201))
    assert example.go("audit").returncode == 0
