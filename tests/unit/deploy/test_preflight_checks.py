"""`reflux preflight` on the example's models, whole and with one thing wrong at a time."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import redis
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from common.bus.embedded import EmbeddedServer
from common.config import RunConfig, load_config
from common.errors import ConfigError
from deploy.__main__ import main
from deploy.preflight import preflight
from deploy.preflight.command import all_findings, show_preflight
from deploy.preflight.finding import Finding, found_by
from deploy.preflight.judged import check_better
from deploy.preflight.models import check_reading, check_student
from deploy.preflight.services import check_bus, check_disk, check_store, check_teacher

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "arithmetic"
STUDENT, TEACHER = EXAMPLE / "models/student", EXAMPLE / "models/teacher"
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
OTHER = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if enable_thinking is not defined %}=={% endif %}"


def configured(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", "evaluation.prompts=16", *overrides])


def chatting(tmp_path: Path, template: str, teachers: str) -> RunConfig:
    """Both models with a chat template, and prompts that are chats."""
    for model, text in ((STUDENT, template), (TEACHER, teachers)):
        place = tmp_path / model.name
        shutil.copytree(model, place)
        (place / "chat_template.jinja").write_text(text)
    prompts = tmp_path / "chats.jsonl"
    prompts.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"{n}+{n}"}]}) + "\n" for n in range(20)))
    models = (f"model.student={tmp_path / 'student'}", f"teachers.arithmetic.path={tmp_path / 'teacher'}")
    return configured(tmp_path, *models, f"data.prompts={prompts}")


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_the_example_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", str(EXAMPLE / "run.toml"), f"--set=run.dir={tmp_path}", "--set=evaluation.prompts=16"]) == 0
    said = capsys.readouterr().out
    assert "ready to run" in said
    assert "error" not in said
    assert "scores the probe" in said


async def test_chats_that_both_templates_render_alike_pass(tmp_path: Path) -> None:
    found = await check_reading(chatting(tmp_path, PLAIN, PLAIN), "arithmetic")
    assert [finding.state for finding in found] == ["ok", "ok"]


async def test_another_chat_template_is_shown_from_the_first_token_that_differs(tmp_path: Path) -> None:
    config = chatting(tmp_path, PLAIN, OTHER)
    finding = (await check_reading(config, "arithmetic"))[-1]
    assert finding.state == "error"
    assert "line 1: from token 4 on the student reads '' and the teacher '='" in finding.says
    assert "only the teacher's template has a switch for thinking" in finding.says
    with pytest.raises(ConfigError, match=r"teacher arithmetic: template: .*--skip-preflight"):
        preflight(config)


def test_swapped_tokens_are_an_error_and_the_other_checks_go_on(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(TEACHER, teacher)
    text = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["+"], vocabulary["-"] = vocabulary["-"], vocabulary["+"]
    (teacher / "tokenizer.json").write_text(json.dumps(text))
    config = configured(tmp_path, f"teachers.arithmetic.path={teacher}")
    states = {finding.subject: finding for finding in asyncio.run(all_findings(config))}
    assert "differ in 2 tokens" in states["teacher arithmetic: tokens"].says
    assert states["teacher arithmetic: tokens"].state == "error"
    assert states["weight store"].state == "ok"
    assert show_preflight(config, Console(quiet=True)) == 1


async def test_a_teacher_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(TEACHER, teacher)
    (file,) = teacher.glob("*.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    config = configured(tmp_path, f"teachers.arithmetic.path={teacher}")
    finding = only(await found_by("teacher", lambda: check_teacher(config, "arithmetic")))
    assert finding.state == "error"
    assert "teacher arithmetic" in finding.says


async def test_a_teacher_that_knows_less_than_the_student_is_warned_of(tmp_path: Path) -> None:
    config = configured(tmp_path, f"model.student={TEACHER}", f"teachers.arithmetic.path={STUDENT}")
    finding = only(await check_better(config, "arithmetic"))
    assert finding.state == "warning"
    assert "take a better teacher" in finding.says


async def test_the_students_own_directory_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the student's own directory"):
        preflight(configured(tmp_path, f"teachers.arithmetic.path={STUDENT}"))
    preflight(configured(tmp_path, f"teachers.arithmetic.path={STUDENT}", "teachers.arithmetic.allow_inert=true"))


async def test_a_server_that_may_evict_is_an_error_and_a_wrong_clock_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with EmbeddedServer.start(tmp_path / "server") as server:
        config = configured(tmp_path, f"bus.url={server.url}")
        assert only(await found_by("server", lambda: check_bus(config))).state == "ok"
        with monkeypatch.context() as patch:
            patch.setattr("deploy.preflight.services.time.time", lambda: 1e9)
            assert only(await check_bus(config)).state == "warning"
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("maxmemory", "3gb")
        finding = only(await found_by("server", lambda: check_bus(config)))
    assert (finding.state, "set it to noeviction" in finding.says) == ("error", True)


async def test_a_store_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = configured(tmp_path, f"weights.dir={tmp_path / 'file' / 'weights'}")
    finding = only(await found_by("weight store", lambda: check_store(config)))
    assert finding.state == "error"
    assert [one.state for one in await all_findings(config)] == ["error"]


async def test_a_full_disk_and_a_small_memory_are_seen_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path)
    assert only(await check_disk(config)).state == "ok"
    assert only(await check_student(config)).state == "ok"
    monkeypatch.setattr("deploy.preflight.services.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1))
    monkeypatch.setattr("deploy.preflight.models.memory_here", lambda: (1, "this machine"))
    assert only(await check_disk(config)).state == "error"
    assert "learner.recompute" in only(await check_student(config)).says


async def test_a_store_elsewhere_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    config = configured(tmp_path, f"weights.url=file://{tmp_path / 'bucket'}")
    assert only(await check_store(config)).state == "ok"
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]
