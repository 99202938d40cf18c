"""What a pool of servers does for a request when servers die, stall, are full or come back."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from scripted_server import ScriptedServer, answers, breaks_off, is_full, scored, scripted, stalls

from common.errors import ConfigError, Rejected, ServersUnreachable
from common.sglang.keys import Keys
from common.sglang.pool import Limits, ServerPool
from common.sglang.request import GenerateRequest
from common.sglang.shape import ModelShape

LIMITS = {"in_flight_tokens": 1000, "requests_per_s": 0, "deadline_s": 60.0, "unreachable_s": 60.0}


@asynccontextmanager
async def pool_of(servers: list[ScriptedServer], **limits: Any) -> AsyncIterator[ServerPool]:
    pool = ServerPool(
        who="teacher t",
        urls=[server.url for server in servers],
        keys=Keys("secret-key"),
        limits=Limits(**{**LIMITS, **limits}),
        shape=ModelShape(100, 64),
    )
    try:
        yield pool
    finally:
        await pool.aclose()


def request(*ids: int) -> GenerateRequest:
    return GenerateRequest(np.array(ids or (1, 2, 3), np.int32), 0, logprob_start=0)


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_go_to_the_server_with_the_least_in_flight() -> None:
    go = asyncio.Event()

    async def together(_server: ScriptedServer, _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await go.wait()
        return web.json_response(scored(body))

    async with scripted(together, together) as servers, pool_of(servers) as pool:
        asked = asyncio.gather(*(pool.ask(request()) for _ in range(8)))
        await until(lambda: asked.done() or sum(server.now for server in servers) == 8)
        go.set()
        await asked
    assert [len(server.bodies) for server in servers] == [4, 4]


async def test_no_more_response_tokens_are_in_flight_than_the_cap() -> None:
    go = asyncio.Event()

    async def together(_server: ScriptedServer, _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await go.wait()
        return web.json_response(scored(body))

    async with scripted(together) as servers, pool_of(servers, in_flight_tokens=6) as pool:
        asked = asyncio.gather(*(pool.ask(request()) for _ in range(12)))
        await until(lambda: asked.done() or servers[0].now == 3)
        await asyncio.sleep(0.1)
        go.set()
        await asked
    assert servers[0].most == 3


async def test_a_longer_request_than_the_cap_goes_by_itself() -> None:
    async with scripted(answers) as servers, pool_of(servers, in_flight_tokens=1) as pool:
        await asyncio.gather(*(pool.ask(request()) for _ in range(3)))
    assert servers[0].most == 1


async def test_a_fatal_request_is_never_sent() -> None:
    async with scripted(answers) as servers, pool_of(servers) as pool:
        with pytest.raises(Rejected, match="id 100 is outside the vocabulary"):
            await pool.ask(request(1, 100))
        with pytest.raises(Rejected, match="id -1 is outside"):
            await pool.ask(request(-1))
    assert servers[0].bodies == []


async def test_a_request_whose_server_died_is_asked_once_more_elsewhere_and_alone() -> None:
    async with scripted(breaks_off, answers) as servers, pool_of(servers) as pool:
        results = await asyncio.gather(*(pool.ask(request()) for _ in range(6)))
    assert len(servers[0].bodies) == 3
    assert len(servers[1].bodies) == 6
    assert {server.url for server, _ in results} == {servers[1].url}
    assert len({body["rid"] for server in servers for body in server.bodies}) == 9


async def test_a_request_that_breaks_two_servers_is_rejected_with_both_reasons_and_stops_there() -> None:
    async with scripted(breaks_off, breaks_off) as servers, pool_of(servers) as pool:
        with pytest.raises(Rejected, match=r"broke off .*; then, asked alone, http.* broke off"):
            await pool.ask(request())
    assert [len(server.bodies) for server in servers] == [1, 1]


async def test_nothing_else_runs_beside_a_suspect() -> None:
    beside, go = list[int](), asyncio.Event()

    async def notes(server: ScriptedServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["input_ids"] != [7, 7]:
            await (go.wait() if body["input_ids"][0] == 1 else asyncio.sleep(0.4))
            return web.json_response(scored(body))
        if server.now > 1 and not beside:
            beside.append(server.now)
            return await breaks_off(server, request, body)
        beside.append(server.now)
        await asyncio.sleep(0.1)
        beside.append(server.now)
        return web.json_response(scored(body))

    async with scripted(notes, notes) as servers, pool_of(servers) as pool:
        others = [asyncio.create_task(pool.ask(request(1, n))) for n in range(4)]
        await until(lambda: all(server.now == 2 for server in servers))
        suspect = asyncio.create_task(pool.ask(request(7, 7)))
        await until(lambda: beside)
        go.set()
        await until(lambda: len(beside) > 1)
        others += [asyncio.create_task(pool.ask(request(2, n))) for n in range(4)]
        await asyncio.gather(suspect, *others, return_exceptions=True)
    assert beside == [3, 1, 1]


async def test_the_second_server_is_another_one_where_there_is_one() -> None:
    async with scripted(answers, answers) as servers, pool_of(servers) as pool:
        await pool.look()
        for server, other in zip(servers, reversed(servers), strict=True):
            assert (await pool._any_up(server.url)).url == other.url


async def test_a_stalled_server_is_left_at_the_deadline() -> None:
    async with scripted(stalls, answers) as servers, pool_of(servers, deadline_s=1.5) as pool:
        results = await asyncio.gather(*(pool.ask(request()) for _ in range(2)))
    assert {server.url for server, _ in results} == {servers[1].url}


async def test_a_full_server_is_asked_again_with_less() -> None:
    async with scripted(is_full) as servers, pool_of(servers) as pool:
        asked = asyncio.create_task(pool.ask(request()))
        await until(lambda: len(servers[0].bodies) >= 2)
        servers[0].script = answers
        await asked
        assert pool.servers[0].budget.limit < LIMITS["in_flight_tokens"]


async def test_a_server_that_comes_back_is_used_again() -> None:
    async with scripted(answers, answers) as servers, pool_of(servers) as pool:
        await pool.ask(request())
        await servers[0].stop()
        for _ in range(4):
            await pool.ask(request())
        assert not pool.servers[0].up
        assert pool.servers[0].reason
        before = len(servers[0].bodies)
        await servers[0].start()
        async with asyncio.timeout(60):
            while len(servers[0].bodies) == before:
                await pool.ask(request())
                await asyncio.sleep(0.02)


async def test_without_any_server_for_too_long_the_reasons_are_told() -> None:
    async with scripted(answers) as servers, pool_of(servers, unreachable_s=0.3) as pool:
        await servers[0].stop()
        with pytest.raises(ServersUnreachable, match=r"teacher t: no server is in rotation since 0\.3 s .*cannot be reached"):
            await pool.ask(request())
        await servers[0].start()


@asynccontextmanager
async def black_hole() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """A server that accepts and never answers, and what it has accepted."""
    accepted: list[asyncio.StreamWriter] = []

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", accepted
        for writer in accepted:
            writer.close()


async def all_that_ask(url: str, count: int) -> list[Any]:
    limits = Limits(**(LIMITS | {"unreachable_s": 0.5}))
    pool = ServerPool(who="teacher t", urls=[url], keys=Keys(), limits=limits, shape=ModelShape(100, 64))
    try:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(pool.ask(request(1, n)) for n in range(count)), return_exceptions=True)
    finally:
        await pool.aclose()


async def test_a_server_that_accepts_and_never_answers_is_given_up_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.sglang.server.INFO_DEADLINE_S", 0.2)
    monkeypatch.setattr("common.sglang.pool._LONGEST_PAUSE_S", 0.0)
    async with black_hole() as (url, _):
        said = await all_that_ask(url, 8)
    assert {type(error) for error in said} == {ServersUnreachable}
    assert "/model_info gave no answer within 0.2 s" in str(said[0])


async def test_those_that_wait_for_a_server_do_not_all_ask_it_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.sglang.server.INFO_DEADLINE_S", 0.2)
    async with black_hole() as (url, accepted):
        said = await all_that_ask(url, 40)
        assert len(accepted) < 20
    assert {type(error) for error in said} == {ServersUnreachable}


async def test_a_refused_request_is_rejected_with_the_servers_own_words() -> None:
    async def refuses(_server: ScriptedServer, _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Duplicate request ID detected: same"}}, status=400)

    async with scripted(refuses) as servers, pool_of(servers) as pool:
        with pytest.raises(Rejected, match="400: Duplicate request ID"):
            await pool.ask(request())
    assert len(servers[0].bodies) == 1


async def test_the_key_is_sent_and_neither_logged_nor_shown(caplog: pytest.LogCaptureFixture) -> None:
    async def refuses(_server: ScriptedServer, _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": "Unauthorized"}, status=401)

    caplog.set_level(logging.DEBUG)
    async with scripted(refuses) as servers, pool_of(servers) as pool:
        with pytest.raises(ConfigError, match="refuses the key") as told:
            await pool.ask(request())
    assert servers[0].headers[0]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in caplog.text + str(told.value) + repr(Keys("secret-key"))


async def test_requests_are_paced() -> None:
    async with scripted(answers) as servers, pool_of(servers, requests_per_s=5) as pool:
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(pool.ask(request()) for _ in range(8)))
        assert asyncio.get_running_loop().time() - begun > 0.9


async def test_a_server_that_cannot_be_prepared_stays_out_and_the_others_go_on() -> None:
    from common.sglang.server import Lost, ModelInfo, Server

    async def prepare(server: Server, info: ModelInfo) -> None:
        assert info.weight_version == "default"
        if server.url == servers[0].url:
            raise Lost("it has other weights")

    async with scripted(answers, answers) as servers:
        pool = ServerPool(
            who="p", urls=[s.url for s in servers], keys=Keys(), limits=Limits(**LIMITS), shape=ModelShape(100, 64), prepare=prepare
        )
        await asyncio.gather(*(pool.ask(request()) for _ in range(4)))
        assert pool.servers[0].reason == "it has other weights"
        await pool.aclose()
    assert [len(server.bodies) for server in servers] == [0, 4]


async def test_an_untested_version_is_named_and_nothing_else_of_server_info_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with scripted(answers) as servers, pool_of(servers) as pool:
        servers[0].software = {"version": "0.5.9", "admin_api_key": "admin-secret"}
        await pool.ask(request())
    (warning,) = [record for record in caplog.records if record.message == "this version of SGLang is not tested"]
    assert (warning.sglang, warning.tested) == ("0.5.9", "0.5.23")
    assert not any("admin-secret" in str(vars(record)) for record in caplog.records)
