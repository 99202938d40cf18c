"""P10 over HTTP: a server that answers without end, packed or not, or with brackets alone, costs an error and no memory."""

import gzip
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from scripted_server import Script, ScriptedServer, answers, scripted
from test_sglang_pool import pool_of, request

from common.errors import Rejected
from common.sglang.request import GenerateRequest
from common.sglang.server import MOST_CONTROL_BYTES, Lost

_PIECE = 1 << 20
_GIGABYTE = 1 << 30


def endless(sent: list[int], *, packed: bool) -> Script:
    """A gigabyte, as far as anybody reads it; `sent` is what went out."""
    pack = gzip.compress if packed else bytes
    begin, piece = pack(b'{"text": "'), pack(b"x" * _PIECE)

    async def answer(_server: ScriptedServer, asked: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if packed else {}))
        await response.prepare(asked)
        await response.write(begin)
        with suppress(ConnectionError):
            for _ in range(_GIGABYTE // _PIECE):
                await response.write(piece)
                sent.append(len(piece))
        return response

    return answer


@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_without_end_is_refused_and_not_read(packed: bool) -> None:
    sent: list[int] = []
    async with scripted(endless(sent, packed=packed)) as servers, pool_of(servers) as pool:
        tracemalloc.start()
        try:
            with pytest.raises(Rejected, match=rf"/generate answered with more than {request().most_reply_bytes} bytes"):
                await pool.ask(request())
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        servers[0].script = answers
        await pool.ask(request())
    assert most < 200 << 20
    assert sum(sent) < _GIGABYTE // 2, "packed, it all fits into the buffers between"


async def test_an_answer_of_brackets_alone_is_an_error() -> None:
    async def nested(_server: ScriptedServer, _asked: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text="[" * 500_000, content_type="application/json")

    async with scripted(nested) as servers, pool_of(servers) as pool:
        with pytest.raises(Rejected, match="/generate answered no JSON"):
            await pool.ask(request())


async def test_a_control_endpoint_has_a_limit_of_its_own() -> None:
    async with scripted(answers) as servers, pool_of(servers) as pool:
        servers[0].software = {"version": "0.5.23", "more": "x" * MOST_CONTROL_BYTES}
        with pytest.raises(Lost, match="/server_info answered with more than"):
            await pool.servers[0].call("GET", "/server_info", deadline_s=60.0)
        assert await pool.servers[0].software() == ""
        await pool.ask(request())


def test_the_longest_true_answer_fits() -> None:
    asked = GenerateRequest(np.zeros(1000, np.int32), 0, logprob_start=0, top=64)
    entry = len('[-0.12345678901234567, 151935, "a word of some length"], ')
    assert 1000 * 65 * entry < asked.most_reply_bytes < 16 * 1000 * 65 * entry
