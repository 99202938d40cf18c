import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import RunConfig, parse_config
from common.config.run import without_password
from common.errors import ConfigError, IdentityError, UserError
from deploy.lock import is_held, only_supervisor
from deploy.preflight import preflight
from deploy.roles import role_specs
from deploy.target import open_target, saved_config
from learner.directory import RunDirectory

Make = Callable[..., RunConfig]


def model(directory: Path, architecture: str = "Qwen3ForCausalLM") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.fixture
def make(tmp_path: Path) -> Make:
    student, teacher, prompts = model(tmp_path / "student"), model(tmp_path / "teacher"), tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1="}\n')

    def build(**sections: object) -> RunConfig:
        values = {
            "run": {"name": "r", "dir": str(tmp_path / "runs")},
            "model": {"student": str(student)},
            "teachers": {"t": {"path": str(teacher)}},
            "data": {"prompts": str(prompts)},
            "evaluation": {"prompts": 0},
        }
        return parse_config(values | sections)

    return build


def test_a_saved_configuration_reads_back_the_same(make: Make) -> None:
    config = make()
    config.directory.mkdir(parents=True)
    with saved_config(config) as file:
        assert open_target(file) == config
    assert open_target(config.directory) == config


def test_a_password_is_in_no_file_that_stays_or_that_others_may_read(make: Make) -> None:
    config = make(bus={"url": "rediss://me:secret@host:6380/2"})
    config.directory.mkdir(parents=True)
    with saved_config(config) as file:
        assert file.stat().st_mode & 0o077 == 0
        assert open_target(file) == open_target(config.directory) == config
        assert "secret" not in (config.directory / "config.toml").read_text()
    assert not file.exists()
    assert open_target(config.directory).bus.url == "rediss://me@host:6380/2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:pw@host:1/0", "redis://host:1/0"),
        ("unix:///tmp/x.sock?db=1", "unix:///tmp/x.sock?db=1"),
        ("redis://host:1/0?db=1&password=pw", "redis://host:1/0?db=1"),
        ("redis://me:p/w#?@host:1/0", "redis://me@host:1/0"),
        ("redis://:p://w@host:1", "redis://host:1"),
        ("me:pw@host:1", "me@host:1"),
    ],
)
def test_addresses_are_shown_without_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run's directory"):
        open_target(tmp_path)


def test_every_teacher_gets_its_scorers(make: Make, tmp_path: Path) -> None:
    teachers = {name: {"path": str(tmp_path / "teacher")} for name in ("a", "b")}
    specs = role_specs(make(teachers=teachers, scorer={"count": 2}, producer={"count": 3}))
    assert [spec.name for spec in specs] == ["learner-0", *(f"producer-{n}" for n in range(3)), *(f"scorer-{n}" for n in range(4))]
    assert [spec.arguments for spec in specs if spec.role == "scorer"] == [("--teacher", name) for name in ("a", "b", "a", "b")]
    fewer = role_specs(make(teachers=teachers, scorer={"count": 2}, producer={"count": 3}), {"a": 3, "b": 1})
    named = [(spec.name, spec.arguments[1]) for spec in fewer[4:]]
    assert named == [("scorer-0", "a"), ("scorer-1", "b"), ("scorer-2", "a"), ("scorer-4", "a")]


def test_a_fixed_metrics_port_is_the_first_of_as_many_as_there_are_processes(make: Make) -> None:
    specs = role_specs(make(service={"metrics_port": 9100}))
    assert [spec.arguments[-1] for spec in specs] == [f"service.metrics_port={port}" for port in (9100, 9101, 9102)]


def test_what_is_fine_passes_the_preflight(make: Make) -> None:
    preflight(make())


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"model": {"student": "/nowhere/at-all"}}, r"model.student = /nowhere/at-all does not exist"),
        ({"teachers": {"t": {"path": "/nowhere/at-all"}}}, r"teachers.t.path = /nowhere/at-all does not exist"),
        ({"data": {"prompts": "/nowhere/x.jsonl"}}, r"data.prompts = /nowhere/x.jsonl does not exist"),
        ({"weights": {"dir": "/proc/weights"}}, r"cannot write /proc/weights .*: set weights.dir"),
        ({"run": {"name": "r", "dir": "/proc/runs"}}, r"cannot write /proc/runs/r .*: set run.dir"),
    ],
)
def test_what_is_missing_is_named_by_its_key(make: Make, sections: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        preflight(make(**sections))


def test_a_model_that_is_no_causal_language_model_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds BertForMaskedLM, which is no causal language model"):
        preflight(make(model={"student": str(model(tmp_path / "bert", "BertForMaskedLM"))}))


def test_a_model_without_weights_is_refused(make: Make, tmp_path: Path) -> None:
    (model(tmp_path / "half") / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no weights"):
        preflight(make(model={"student": str(tmp_path / "half")}))


def test_a_model_without_a_tokenizer_is_refused(make: Make, tmp_path: Path) -> None:
    (model(tmp_path / "half") / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"teachers.t.path = .*/half has no tokenizer \(tokenizer.json\): complete the download"):
        preflight(make(teachers={"t": {"path": str(tmp_path / "half")}}))


def test_broken_json_among_the_prompts_is_named_by_its_line(make: Make, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1"}\n{"prompt": \n')
    with pytest.raises(ConfigError, match=r"prompts.jsonl line 2 is broken JSON"):
        preflight(make())


def test_a_directory_of_another_run_is_refused_with_what_differs(make: Make) -> None:
    RunDirectory(make().directory).open(make(), {})
    preflight(make(producer={"count": 2}))
    with pytest.raises(IdentityError, match=r"optimizer.lr was 1e-06 and is 0.5"):
        preflight(make(optimizer={"lr": 0.5}))


def test_a_run_has_one_supervisor(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    assert not is_held(run)
    with only_supervisor(run):
        assert is_held(run)
        with pytest.raises(UserError, match=rf"running already \(process {os.getpid()}\)"), only_supervisor(run):
            pass
    assert not is_held(run)


def test_help_answers_before_anything_heavy_is_loaded() -> None:
    """Of these modules each takes longer to import than a person waits for an answer."""
    program = "import sys; from deploy.cli import build_parser; build_parser().format_help(); import deploy.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "pydantic", "rich", "redis", "ray", "starlette", "aiohttp"} & set(loaded)
    done = subprocess.run([sys.executable, "-m", "deploy", "--help"], capture_output=True, text=True, check=True)
    assert "run, or resume, everything on this machine" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "missing.toml"], "reflux: there is no configuration file missing.toml"),
        (["run", "bad.toml"], "reflux: unknown key learner.batchsize: did you mean learner.batch_size?"),
        (["status", "."], "reflux: . is no run's directory"),
        (["export", "fine.toml"], "reflux: /proc/runs/r holds no run: give the directory runs/NAME or the run's TOML"),
        (["run", "fine.toml"], "reflux: cannot write /proc/runs (No such file or directory): set run.dir to a directory you can write"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "bad.toml").write_text(
        '[run]\nname="r"\n[model]\nstudent="s"\n[teachers.t]\npath="t"\n[data]\nprompts="p.jsonl"\n[learner]\nbatchsize=4\n'
        "[evaluation]\nprompts=0\n"
    )
    fine = (tmp_path / "bad.toml").read_text().replace("batchsize", "batch_size").replace('name="r"', 'name="r"\ndir="/proc/runs"')
    (tmp_path / "fine.toml").write_text(fine)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, "-m", "deploy", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(sentence)
