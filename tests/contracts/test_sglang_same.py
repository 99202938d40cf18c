"""A server that holds another model than its teacher's other servers scores nothing."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aiohttp import web
from safetensors.torch import load_file, save_file
from scripted_server import Script, ScriptedServer, scored, scripted
from stand_in import stand_in
from test_sglang_pool import until
from test_teacher_contract import asked_at, mixed_rollouts, save_model

from common.messages import TeacherScore
from common.sglang.server import Server
from scorers.examination import Examination
from scorers.probe import probe_sequences
from scorers.teachers.base import Teacher
from scorers.teachers.sglang.teacher import SglangTeacher


def says(logprob: float) -> Script:
    """The same for every token."""

    async def answer(_server: ScriptedServer, _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        reply, top = scored(body), [[logprob, one, None] for one in range(body["top_logprobs_num"])]
        entries = reply["meta_info"]["input_token_logprobs"]
        entries[1:] = [[logprob, one, None] for _, one, _ in entries[1:]]
        reply["meta_info"]["input_top_logprobs"] = [None] + [top] * (len(entries) - 1)
        return web.json_response(reply)

    return answer


def servers_of(teacher: Teacher) -> list[Server]:
    assert isinstance(teacher, SglangTeacher)
    return teacher._pool.servers


def another_model(directory: Path) -> Path:
    save_model(directory)
    tensors = load_file(directory / "model.safetensors")
    torch.manual_seed(1)
    drawn = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_file(drawn, directory / "model.safetensors", {"format": "pt"})
    return directory


async def test_a_server_that_comes_back_with_another_model_scores_nothing_more(tmp_path: Path) -> None:
    directory, rollouts = tmp_path / "teacher", mixed_rollouts()
    save_model(directory)
    other = another_model(tmp_path / "other")
    async with AsyncExitStack() as life, stand_in(directory) as stays, asyncio.timeout(120):
        goes = await life.enter_async_context(stand_in(directory))
        async with asked_at(directory, stays.url, goes.url) as teacher:
            expected = await teacher.score(rollouts)
            stayed, gone = servers_of(teacher)
            assert stayed.up
            assert gone.up
            await life.aclose()
            while gone.up:
                await teacher.score(rollouts)
            async with stand_in(other, port=int(goes.url.rpartition(":")[2])) as back:
                assert back.url == gone.url
                while "another model" not in gone.reason:
                    for one, now in zip(expected, await teacher.score(rollouts), strict=True):
                        assert isinstance(one, TeacherScore)
                        assert isinstance(now, TeacherScore)
                        np.testing.assert_allclose(now.logprobs, one.logprobs, atol=1e-4)
            assert (stayed.up, gone.up) == (True, False)


async def test_one_of_six_servers_that_changes_its_model_without_a_word_is_found_out(tmp_path: Path) -> None:
    save_model(tmp_path)
    asked = probe_sequences(range(20))
    async with scripted(*[says(-1.0)] * 6) as scripts, asked_at(tmp_path, *(script.url for script in scripts)) as teacher:
        examination = Examination("t", teacher, asked, await teacher.score(asked))
        servers = servers_of(teacher)
        await until(lambda: all(server.up for server in servers))
        assert await examination.complaint() == ""
        scripts[5].script = says(-3.0)
        assert f"{scripts[5].url}: teacher t is another model" in await examination.complaint()
        assert [server.up for server in servers] == [True] * 5 + [False]
        assert await examination.complaint() == ""
        servers[5].ask_again_at = 0.0
        await teacher.score(asked)
        assert "another model" in servers[5].reason
        assert [server.up for server in servers] == [True] * 5 + [False]
