"""What `reflux preflight` says of SGLang servers, one line for each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from scripted_server import ScriptedServer, scripted, stalls
from stand_in import prefers, stand_in

from common.config import RunConfig, load_config
from common.errors import ConfigError
from common.sglang.shape import read_shape
from deploy import local
from deploy.preflight import ask_servers, asked
from deploy.preflight.judged import check_better
from deploy.preflight.services import check_students, check_teacher
from deploy.sglang_standin.web import Endpoints

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "arithmetic"
NOBODY = "http://127.0.0.1:9"


async def test_each_server_of_a_teacher_is_asked_for_itself(tmp_path: Path) -> None:
    async with stand_in(EXAMPLE / "models/teacher") as server:
        servers = [f'teachers.arithmetic.urls=["{server.url}","{NOBODY}"]', "teachers.arithmetic.kind=sglang"]
        config = load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", *servers])
        well, away = await check_teacher(config, "arithmetic")
    assert (well.state, away.state) == ("ok", "error")
    assert away.subject == f"teacher arithmetic at {NOBODY}"
    assert "cannot be reached" in away.says


async def test_a_teacher_on_servers_that_holds_the_students_weights_is_an_error(tmp_path: Path) -> None:
    async with stand_in(EXAMPLE / "models/student") as server:
        servers = [f'teachers.arithmetic.urls=["{server.url}"]', "teachers.arithmetic.kind=sglang"]
        path = f"teachers.arithmetic.path={EXAMPLE / 'models/student'}"
        config = load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", path, *servers])
        (found,) = await check_teacher(config, "arithmetic")
    assert found.state == "error"
    assert "nothing could be learned" in found.says


async def test_each_server_of_the_student_answers_and_keeps_its_weights(tmp_path: Path) -> None:
    async with stand_in(EXAMPLE / "models/student") as server:
        servers = [f'producer.urls=["{server.url}","{NOBODY}"]', "producer.kind=sglang"]
        config = load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", *servers])
        well, away = await check_students(config)
        assert server.service.weight_version == "default"
    assert (well.state, away.state) == ("ok", "error")
    assert "answers with 4 log-probabilities" in well.says


def on_student_at(url: str, tmp_path: Path) -> RunConfig:
    return load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", f'producer.urls=["{url}"]', "producer.kind=sglang"])


async def test_a_student_server_to_which_all_ids_are_alike_is_an_error(tmp_path: Path) -> None:
    config = on_student_at(NOBODY, tmp_path)
    uniform = -float(np.log(read_shape(config.model.student).vocabulary))

    async def misloaded(_server: ScriptedServer, _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        entries = [[uniform, one, None] for one in range(body["sampling_params"]["max_new_tokens"])]
        return web.json_response({"meta_info": {"output_token_logprobs": entries, "finish_reason": {"type": "length"}}})

    async with scripted(misloaded) as (server,):
        (found,) = await check_students(on_student_at(server.url, tmp_path))
    assert found.state == "error"
    assert "looks misloaded" in found.says


async def test_slots_that_no_server_would_fill_are_a_warning(tmp_path: Path) -> None:
    async with stand_in(EXAMPLE / "models/student") as server:
        config = on_student_at(server.url, tmp_path)
        few = config.producer.model_copy(update={"slots": 9, "in_flight_tokens": 8 * config.sampling.max_new_tokens})
        warned, _ = await check_students(config.model_copy(update={"producer": few}))
    assert warned.state == "warning"
    assert f"set it to {9 * config.sampling.max_new_tokens}," in warned.says


async def test_a_student_server_with_preferences_of_its_own_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoints, "_info", prefers)
    async with stand_in(EXAMPLE / "models/student") as server:
        (found,) = await check_students(on_student_at(server.url, tmp_path))
    assert found.state == "error"
    assert "start it without --preferred-sampling-params" in found.says


@pytest.mark.parametrize(("student", "teacher", "state"), [("student", "teacher", "ok"), ("teacher", "student", "warning")])
async def test_teacher_and_student_on_servers_answer_held_out_questions(student: str, teacher: str, state: str, tmp_path: Path) -> None:
    models = EXAMPLE / "models"
    async with stand_in(models / student, slots=16) as one, stand_in(models / teacher, slots=16) as other:
        servers = [f'producer.urls=["{one.url}"]', "producer.kind=sglang", f'teachers.arithmetic.urls=["{other.url}"]']
        paths = [f"model.student={models / student}", f"teachers.arithmetic.path={models / teacher}", "teachers.arithmetic.kind=sglang"]
        (found,) = await check_better(load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}", *servers, *paths]), "arithmetic")
    assert found.state == state
    assert "of 16 held-out questions the student gets" in found.says


async def test_a_comparison_that_the_servers_do_not_allow_is_a_warning(tmp_path: Path) -> None:
    (found,) = await check_better(on_student_at(NOBODY, tmp_path), "arithmetic")
    assert found.state == "warning"
    assert "could not be asked: producer: no server is in rotation" in found.says


def on_teacher_at(url: str, tmp_path: Path) -> RunConfig:
    servers = [f'teachers.arithmetic.urls=["{url}"]', "teachers.arithmetic.kind=sglang"]
    return load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path / 'run'}", *servers])


async def knows_nothing(_server: ScriptedServer, _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    uniform = -float(np.log(read_shape(EXAMPLE / "models/teacher").vocabulary))
    ids = body["input_ids"][body["logprob_start_len"] :]
    meta: dict[str, Any] = {"finish_reason": {"type": "length", "length": 0}}
    meta["input_token_logprobs"] = [[None if place == 0 else uniform, one, None] for place, one in enumerate(ids)]
    meta["input_top_logprobs"] = [None if place == 0 else [[uniform, top, None] for top in range(8)] for place in range(len(ids))]
    return web.json_response({"text": "", "output_ids": [], "meta_info": meta})


async def test_a_run_whose_teachers_server_is_misloaded_does_not_start(tmp_path: Path) -> None:
    async with scripted(knows_nothing) as (server,):
        config = on_teacher_at(server.url, tmp_path)
        with pytest.raises(ConfigError, match=f"teacher arithmetic at {server.url}: .*nothing could be learned.*--skip-preflight"):
            await asyncio.to_thread(local.run, config)
    assert not (config.directory / "logs").exists()


@pytest.mark.parametrize("kind", ["teacher", "student"])
async def test_a_server_that_is_not_there_at_the_start_is_said_and_waited_for(kind: str, tmp_path: Path) -> None:
    said: list[str] = []
    await ask_servers((on_teacher_at if kind == "teacher" else on_student_at)(NOBODY, tmp_path), said.append)
    (sentence,) = said
    assert sentence.startswith(f"warning: {kind}")
    assert f"at {NOBODY}: " in sentence


async def test_a_server_that_never_answers_does_not_hold_up_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "_AT_MOST_S", 0.5)
    said: list[str] = []
    async with scripted(stalls) as (server,):
        await ask_servers(on_student_at(server.url, tmp_path), said.append)
    assert said == ["warning: student: no answer within 0.5 s"]


async def test_a_run_without_servers_asks_none(tmp_path: Path) -> None:
    said: list[str] = []
    await ask_servers(load_config(EXAMPLE / "run.toml", [f"run.dir={tmp_path}"]), said.append)
    assert not said
