"""`reflux up --ray local`: the example with its roles as Ray actors, two of which are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples/arithmetic/run.toml"
STEPS = 30


def command(word: str, runs: Path, *more: str) -> list[str]:
    settings = {
        "run.dir": runs,
        "run.name": "ray",
        "learner.steps": STEPS,
        "learner.checkpoint_every": 10,
        "evaluation.prompts": 64,
        "bus.lease_s": 3,
        "cluster.learner_cpus": 0.5,
        "cluster.producer_cpus": 0.5,
        "cluster.scorer_cpus": 0.25,
    }
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "deploy", word, str(CONFIG), *pairs, *more]


def find(parent: psutil.Process, *words: str) -> psutil.Process | None:
    """A descendant whose command line has all the words."""
    for process in parent.children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def wait_for_step(runs: Path, step: int) -> None:
    metrics, deadline = runs / "ray/metrics.jsonl", time.monotonic() + 90
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert time.monotonic() < deadline, f"step {step} does not come"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_ray_outlives_a_scorer_s_actor_and_the_learner(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(command("up", tmp_path, "--ray", "local", "--scorers", "2"), env=environment, stdout=log, stderr=log)
    try:
        wait_for_step(tmp_path, 4)
        parent = psutil.Process(up.pid)
        scorer = find(parent, "-m scorers")
        assert scorer
        actor = scorer.parent()
        assert actor
        actor.send_signal(signal.SIGKILL)
        scorer.wait(10)  # it dies with its actor
        wait_for_step(tmp_path, 14)
        learner = find(parent, "-m learner")
        assert learner
        learner.send_signal(signal.SIGKILL)
        assert up.wait(180) == 0, (tmp_path / "up.log").read_text()
    finally:
        up.kill()
        up.wait()
    said = (tmp_path / "up.log").read_text()
    assert "its actor or its node was lost" in said
    result = json.loads((tmp_path / "ray/result.json").read_text())
    assert result["ledger"]["applied"] == STEPS * 64
    audit = subprocess.run(command("audit", tmp_path), env=environment, capture_output=True, text=True, check=False)
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    line = command("up", tmp_path, "--ray", "127.0.0.1:1", "--set", "bus.url=redis://127.0.0.1:1")
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr


def test_a_cluster_s_nodes_need_a_server_that_they_all_reach(tmp_path: Path) -> None:
    line = command("up", tmp_path, "--ray", "127.0.0.1:1")
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "set bus.url" in done.stderr


@pytest.mark.slow
def test_roles_that_have_no_place_are_named_with_what_they_ask_for(tmp_path: Path) -> None:
    line = command("up", tmp_path, "--ray", "local", "--set", "cluster.scorer_gpus=3")
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ask for 3 GPU, the Ray cluster has 0: add nodes" in done.stderr
