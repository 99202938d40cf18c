"""Traps of the protocol that a run would meet late: a server that was left paused, versions that cannot pause, routers, other checksums."""

import asyncio
import itertools
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from router import router
from scripted_server import ScriptedServer, answers, breaks_off, scored, scripted
from stand_in import prefers, stand_in
from test_engine_contract import ticket
from test_sglang_engine import Setup
from test_sglang_pool import LIMITS, pool_of, request

from common.errors import Rejected, ServersUnreachable
from common.messages import Span, Version
from common.sglang.budget import Budget
from common.sglang.server import KEEP_ALIVE_S
from deploy.sglang_standin.model import StandInModel
from deploy.sglang_standin.service import Service
from deploy.sglang_standin.web import Endpoints

_SGLANG_CLOSES_AFTER_S = 5


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def abilities(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    return [(one.ability, one.there) for one in caplog.records if one.message == "what a server can do"]


async def test_a_server_that_a_dead_producer_left_paused_goes_on_before_it_is_asked(setup: Setup) -> None:
    async with stand_in(setup.student) as server:
        async with setup.on(server.url) as engine:
            await engine.generate(ticket(1, 2))
        await server.service.pause("retract")
        async with setup.on(server.url) as another, asyncio.timeout(60):
            assert (await another.generate(ticket(2, 4))).versions == (Span(0, 0, 4, exact=True),)


async def test_a_version_before_0_5_21_gets_its_weights_without_a_pause_and_the_log_says_so(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("deploy.sglang_standin.web._OPEN", {"/health"})
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        monkeypatch.setattr(server.service, "pause", None)
        asked = asyncio.create_task(engine.generate(ticket(1, 300)))
        async with asyncio.timeout(60):
            while not server.service.decoding:
                await asyncio.sleep(0.005)
        await engine.update_weights(manifest, directory)
        assert (await asked).versions == (Span(0, 0, 300, exact=True),)
        assert (await engine.generate(ticket(2, 4))).versions == (Span(1, 3, 4, exact=True),)
    assert set(abilities(caplog)) == {("pause by retraction", False), ("checksums", True), ("versions per token", True)}


async def test_what_a_server_can_do_is_logged_once(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        for seq in range(3):
            await engine.generate(ticket(seq, 2))
    assert sorted(abilities(caplog)) == [("checksums", True), ("pause by retraction", True), ("versions per token", True)]


async def test_a_student_behind_a_router_is_told_to_name_the_servers(setup: Setup) -> None:
    async with stand_in(setup.student) as server, router(server.url) as url, setup.on(url) as engine:
        with pytest.raises(ServersUnreachable, match=r"name the servers themselves in producer\.urls, not their router"):
            await engine.generate(ticket(1, 2))


async def test_a_student_server_with_preferences_of_its_own_is_not_used(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand_in(setup.student) as plain:
        monkeypatch.setattr(Endpoints, "_info", prefers)
        async with stand_in(setup.student) as cuts, setup.on(plain.url, cuts.url) as engine:
            for seq in range(4):
                await engine.generate(ticket(seq, 2))
            reasons = {server.url: server.reason for server in engine._pool.servers}
    assert not reasons[plain.url]
    assert "adds {'top_k': 20} to every request" in reasons[cuts.url]


async def test_weights_roll_over_a_pool_one_server_at_a_time(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stand_in(setup.student) as one, stand_in(setup.student) as two, stand_in(setup.student) as three:
        servers, beside = [one, two, three], list[int]()
        pause = Service.pause

        async def counted(service: Service, mode: str) -> None:
            beside.append(sum(server.service.paused for server in servers))
            await pause(service, mode)

        async with setup.on(*(server.url for server in servers)) as engine:
            await engine.generate(ticket(1, 2))
            assert all(server.up for server in engine._pool.servers)
            monkeypatch.setattr(Service, "pause", counted)
            for step in (3, 4):
                await engine.update_weights(*setup.publish(Version(1, step)))
        assert beside == [0] * 6
        assert not any(server.service.paused for server in servers)


async def test_a_server_with_other_checksums_than_the_others_leaves_rotation(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as one, stand_in(setup.student) as two, setup.on(one.url, two.url) as engine:
        await engine.generate(ticket(1, 2))
        assert all(server.up for server in engine._pool.servers)
        told = itertools.count()
        monkeypatch.setattr(StandInModel, "checksums", lambda _: {"model.norm.weight": str(next(told))})
        await engine.update_weights(manifest, directory)
        reasons = {server.url: server.reason for server in engine._pool.servers}
        assert not reasons[one.url]
        assert "has other checksums than the other servers" in reasons[two.url]
        assert (await engine.generate(ticket(2, 4))).versions == (Span(1, 3, 4, exact=True),)


async def test_a_429_from_in_between_is_a_full_server() -> None:
    async def busy_once(server: ScriptedServer, _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) == 1:
            return web.Response(status=429, text="slow down")
        return web.json_response(scored(body))

    async with scripted(busy_once) as servers, pool_of(servers) as pool:
        await pool.ask(request())
        assert pool.servers[0].budget.limit < LIMITS["in_flight_tokens"]


async def test_a_request_on_a_kept_connection_that_breaks_is_never_sent_again_unasked() -> None:
    async def breaks_second(server: ScriptedServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) > 1:
            return await breaks_off(server, request, body)
        return web.json_response(scored(body))

    async with scripted(breaks_second, answers) as servers, pool_of(servers) as pool:
        assert (await pool.ask(request(1)))[0].url == servers[0].url
        assert (await pool.ask(request(2)))[0].url == servers[1].url
    assert [[body["input_ids"] for body in server.bodies] for server in servers] == [[[1], [2]], [[2]]]


async def test_connections_are_kept_for_less_long_than_servers_keep_them() -> None:
    async with scripted(answers) as servers, pool_of(servers) as pool:
        await pool.ask(request())
        connector = pool.servers[0]._open().connector
        assert connector is not None
        assert connector._keepalive_timeout == KEEP_ALIVE_S < _SGLANG_CLOSES_AFTER_S


async def test_a_slow_answer_means_less_at_a_time() -> None:
    async def slow(_server: ScriptedServer, _request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(1.1)
        return web.json_response(scored(body))

    async with scripted(slow) as servers, pool_of(servers, deadline_s=2.0) as pool:
        with suppress(Rejected):  # where the machine itself is slower than the deadline
            await pool.ask(request())
        assert pool.servers[0].budget.limit < LIMITS["in_flight_tokens"]


def test_a_budget_halves_once_per_congestion_and_grows_back_in_steps() -> None:
    budget = Budget(1600)
    for now in (10.0, 10.1, 10.9):
        budget.congested(now)
    assert budget.limit == 800
    budget.congested(11.1)
    assert budget.limit == 400
    for _ in range(4):
        budget.answered(400)
    assert budget.limit == 500
    for _ in range(100):
        budget.answered(400)
    assert budget.limit == 1600
    for now in range(20, 60):
        budget.congested(float(now))
    assert budget.limit == 1
    assert budget.fits(0, 5000)
    assert not budget.fits(1, 1)
