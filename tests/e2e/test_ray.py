"""`reflux up --ray local`: the example with its roles as Ray actors, two of which are killed."""

from __future__ import annotations

import json
import os
import re
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


def command(word: str, runs: Path, *more: str, **changed: object) -> list[str]:
    settings: dict[str, object] = {
        "run.dir": runs,
        "run.name": "ray",
        "learner.steps": STEPS,
        "learner.checkpoint_every": 10,
        "evaluation.prompts": 64,
        "bus.lease_s": 3,
        "cluster.learner_cpus": 0.5,
        "cluster.producer_cpus": 0.5,
        "cluster.scorer_cpus": 0.25,
        **{key.replace("__", "."): value for key, value in changed.items()},
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


def wait_for_step(runs: Path, step: int, up: subprocess.Popen[bytes]) -> None:
    metrics, deadline = runs / "ray/metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert time.monotonic() < deadline, f"step {step} does not come"
        assert up.poll() is None, (runs / "up.log").read_text()
        time.sleep(0.05)


def kill_actor(up: subprocess.Popen[bytes], role: str) -> None:
    """And with it the role, which is its child."""
    child = find(psutil.Process(up.pid), f"-m {role}")
    assert child
    actor = child.parent()
    assert actor
    assert "RoleActor" in " ".join(actor.cmdline()), actor.cmdline()
    actor.send_signal(signal.SIGKILL)
    child.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_ray_outlives_the_actors_of_a_scorer_and_of_the_learner(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(command("up", tmp_path, "--ray", "local", "--scorers", "2"), env=environment, stdout=log, stderr=log)
    try:
        for step, role in ((4, "scorers"), (14, "learner")):
            wait_for_step(tmp_path, step, up)
            kill_actor(up, role)
        assert up.wait(200) == 0, (tmp_path / "up.log").read_text()
    finally:
        up.kill()
        up.wait()
    said = (tmp_path / "up.log").read_text()
    for name in (r"scorer-\d", "learner-0"):
        assert re.search(rf"{name} ended \(its actor or its node was lost\)", said), said
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
@pytest.mark.timeout(300)
def test_roles_that_have_no_place_are_named_with_what_they_ask_for(tmp_path: Path) -> None:
    line = command("up", tmp_path, "--ray", "local", cluster__scorer_gpus=3, cluster__patience_s=1)
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "waits up to 1 s for room: the roles of this run ask for 3 GPU, the Ray cluster has 0 (0 free)" in done.stdout
    assert "ask for 3 GPU, the Ray cluster has 0 (0 free); waited 1 s (cluster.patience_s): add nodes" in done.stderr


SERVER = "{python} -m deploy.sglang_standin --model %s --host {host} --port {port}" % (ROOT / "examples/arithmetic/models/teacher")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_scorers_become_four_when_rollouts_wait_for_a_teacher_on_servers_that_ray_started(tmp_path: Path) -> None:
    """Each scorer may ask eight times a second: what two of them score leaves the learner idle."""
    changed = {
        "learner__batch_size": 16,
        "evaluation__prompts": 32,
        "teachers__arithmetic__kind": "sglang",
        "teachers__arithmetic__requests_per_s": 8,
        "scorer__count": 2,
        "scorer__lease_tokens": 512,
        "cluster__servers__arithmetic__command": SERVER,
        "cluster__servers__arithmetic__count": 2,
        "cluster__servers__arithmetic__cpus": 0.1,
        "cluster__servers__arithmetic__gpus": 0,
        "cluster__scorers_min": 2,
        "cluster__scorers_max": 4,
        "cluster__scorer_cpus": 0.1,
        "cluster__scale_age_s": 1,
        "cluster__scale_cool_down_s": 5,
    }
    line = command("up", tmp_path, "--ray", "local", **changed)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "teacher arithmetic has 4 scorers from now on, not" in done.stdout  # at once, or by way of 3
    logs = tmp_path / "ray/logs"
    assert all("is ready" in (logs / f"scorer-{n}.log").read_text() for n in range(4))
    assert all("listening on" in (logs / f"arithmetic-server-{n}.log").read_text() for n in range(2))
    result = json.loads((tmp_path / "ray/result.json").read_text())
    assert (result["ledger"]["applied"], result["ledger"]["dead"]) == (STEPS * 16, 0)
    audit = subprocess.run(command("audit", tmp_path, **changed), env=environment, capture_output=True, text=True, check=False)
    assert audit.returncode == 0, audit.stdout + audit.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_that_ends_before_it_answers_is_named_with_its_last_words(tmp_path: Path) -> None:
    changed = {
        "teachers__arithmetic__kind": "sglang",
        "cluster__servers__arithmetic__command": "{python} -c 'raise SystemExit(\"no such model\")'",
        "cluster__servers__arithmetic__cpus": 0.1,
        "cluster__servers__arithmetic__gpus": 0,
    }
    line = command("up", tmp_path, "--ray", "local", **changed)
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "arithmetic-server-0 ended by itself (no such model): correct cluster.servers.arithmetic.command" in done.stderr


def test_servers_of_a_cluster_are_not_started_elsewhere(tmp_path: Path) -> None:
    line = command("run", tmp_path, teachers__arithmetic__kind="sglang", cluster__servers__arithmetic__command="serve")
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cluster.servers.arithmetic is started by `reflux up --ray` alone" in done.stderr
