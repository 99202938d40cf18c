"""W&B gets what metrics.jsonl and evaluations.jsonl hold, steps rising; with the package installed, a real offline run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from common.config import RunConfig, parse_config
from common.errors import ConfigError
from learner.directory import RunDirectory
from learner.wandb_run import check_wandb, write_wandb


class FakeRun:
    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []

    def init(self, **values: Any) -> Self:
        self.begun = values
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.rows.append((step, numbers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def configured(root: Path, project: str) -> RunConfig:
    run = {"name": "r", "dir": str(root)}
    values = {
        "run": run,
        "model": {"student": "s"},
        "teachers": {"t": {"path": "t"}},
        "data": {"prompts": "p"},
        "evaluation": {"prompts": 0},
    }
    return parse_config({**values, "learner": {"wandb": project}})


def recorded(config: RunConfig) -> RunDirectory:
    directory = RunDirectory(config.directory)
    directory.root.mkdir()
    steps = [{"step": step, "at": 1.0, "loss": 1 / step, "kl_by_teacher": {"t": 0.5}, "note": "text"} for step in (2, 1)]
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in steps))
    evaluations = [{"step": 2, "n": 4, "pass_at_1": 0.75, "at": 1.0}, {"step": 0, "n": 4, "pass_at_1": 0.25, "at": 1.0}]
    directory.evaluations.write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    return directory


def test_steps_and_evaluations_are_logged_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fake.init, Settings=dict, Error=RuntimeError))
    config = configured(tmp_path, "distil")
    write_wandb(config, recorded(config))
    assert (fake.begun["project"], fake.begun["name"], fake.begun["mode"]) == ("distil", "r", "offline")
    assert fake.rows == [
        (0, {"pass_at_1": 0.25}),
        (1, {"loss": 1.0, "kl_by_teacher/t": 0.5}),
        (2, {"loss": 0.5, "kl_by_teacher/t": 0.5, "pass_at_1": 0.75}),
    ]


def test_a_run_for_wandb_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> Any:
        raise RuntimeError("its service does not start")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict, Error=RuntimeError))
    config = configured(tmp_path, "distil")
    write_wandb(config, recorded(config))
    assert "metrics.jsonl has its numbers" in caplog.text


def test_without_a_project_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = configured(tmp_path, "")
    check_wandb(config)
    write_wandb(config, RunDirectory(config.directory))


def test_a_project_without_the_package_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.wandb_run.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install"):
        check_wandb(configured(tmp_path, "distil"))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed (pip install 'reflux[wandb]')")
@pytest.mark.filterwarnings("default")
def test_the_real_package_writes_an_offline_run(tmp_path: Path) -> None:
    config = configured(tmp_path, "distil")
    directory = recorded(config)
    write_wandb(config, directory)
    assert list(directory.root.glob("wandb/offline-run-*/*.wandb"))
