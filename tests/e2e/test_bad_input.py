"""A mistake costs one sentence that says what to do, an exit code ≠ 0, and nothing that was there."""

import shutil
import socket
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
    assert "line 2" in refused(example, "run", "--dry-run")


def test_an_unknown_teacher_route(example, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1=", "teacher": "nobody"}\n')
    example.settings["data.prompts"] = prompts
    assert "unknown teacher 'nobody'" in refused(example, "run", "--dry-run")


def test_an_architecture_that_the_learner_cannot_train(example, tmp_path: Path) -> None:
    shutil.copytree(STUDENT, tmp_path / "student")
    config = tmp_path / "student" / "config.json"
    config.write_text(config.read_text().replace("Qwen3ForCausalLM", "GPT2ForCausalLM"))
    example.settings["model.student"] = tmp_path / "student"
    assert "GPT2ForCausalLM" in refused(example, "run", "--dry-run")


def test_a_teacher_with_the_weights_of_the_student(example, tmp_path: Path) -> None:
    shutil.copytree(STUDENT, tmp_path / "teacher")
    example.settings["teachers.arithmetic.path"] = tmp_path / "teacher"
    example.settings["teachers.arithmetic.dtype"] = "float32"
    assert refused(example).startswith("reflux: scorer: teacher")


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


@pytest.mark.slow
def test_a_port_that_is_taken(example) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        example.settings["service.metrics_port"] = taken.getsockname()[1]
        assert "service.metrics_port" in refused(example)
