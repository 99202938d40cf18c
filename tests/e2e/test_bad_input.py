"""A mistake costs one sentence that says what to do, an exit code ≠ 0, and nothing that was there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.timeout(200)]

STUDENT = Path(__file__).resolve().parents[2] / "examples" / "arithmetic" / "models" / "student"


def refused(example, *arguments: str) -> str:
    """The one sentence."""
    done = example.go(*(arguments or ("run",)))
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_a_prompt_longer_than_the_context(example, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1="}\n{"prompt": "%s="}\n' % ("1+" * 200))
    example.settings["data.prompts"] = prompts
    assert "line 2" in refused(example)


def test_an_unknown_teacher_route(example, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1=", "teacher": "nobody"}\n')
    example.settings["data.prompts"] = prompts
    assert "unknown teacher 'nobody'" in refused(example)


def test_an_architecture_that_the_learner_cannot_train(example, tmp_path: Path) -> None:
    shutil.copytree(STUDENT, tmp_path / "student")
    config = tmp_path / "student" / "config.json"
    config.write_text(config.read_text().replace("Qwen3ForCausalLM", "GPT2ForCausalLM"))
    example.settings["model.student"] = tmp_path / "student"
    assert "GPT2ForCausalLM" in refused(example)


def test_an_inert_teacher(example) -> None:
    example.settings["teachers.arithmetic.path"] = STUDENT
    example.settings["teachers.arithmetic.dtype"] = "float32"
    assert "teacher" in refused(example)


def test_a_window_that_cannot_fit(example) -> None:
    example.settings["bus.max_bytes"] = 1000
    assert "raise bus.max_bytes" in refused(example)


def test_a_server_that_is_not_there(example) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    example.settings |= {"bus.url": f"redis://127.0.0.1:{port}/0", "bus.connect_timeout_s": 1}
    sentence = refused(example)
    assert str(port) in sentence
    assert not example.started


def test_a_port_that_is_taken(example) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        example.settings["service.metrics_port"] = taken.getsockname()[1]
        assert "service.metrics_port" in refused(example)


def test_another_identity_says_what_differs_and_leaves_the_run_alone(example) -> None:
    example.settings["learner.steps"] = 2
    assert example.go("run").returncode == 0
    before = (example.directory / "result.json").read_bytes()
    example.settings["optimizer.lr"] = 0.5
    assert "optimizer.lr was 0.001 and is 0.5" in refused(example)
    assert (example.directory / "result.json").read_bytes() == before


def test_a_second_learner_and_a_wrong_password_on_a_live_run(example) -> None:
    example.settings["learner.steps"] = 400
    example.start("run")
    example.wait_for(lambda: example.step >= 1, "step 1")
    arguments = ["--config", str(example.directory / "config.toml"), "--set", 'bus.url=""']
    second = subprocess.run(
        [sys.executable, "-m", "learner", *arguments], env=example.environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert second.returncode == 2, second.stderr
    assert "another learner" in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr

    address = (example.directory / "bus.json").read_text().rpartition("@")[2].partition('"')[0]
    wrong = subprocess.run(
        [sys.executable, "-m", "producers", *arguments[:2], "--set", f"bus.url=redis://:wrong@{address}"],
        env=example.environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert wrong.returncode != 0
    assert "password" in wrong.stderr.splitlines()[-1]
    assert "Traceback" not in wrong.stderr
    os.kill(example.started[-1].pid, signal.SIGTERM)
    assert example.started[-1].wait(60) == 0
