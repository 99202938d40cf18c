"""What the engine on servers does about versions, log-probabilities that could not be trained on, and servers that fail or come back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from scripted_server import ScriptedServer, scripted
from stand_in import StandIn, stand_in
from test_engine_contract import SglangAdapter, ticket

from common.errors import Rejected, WeightsError
from common.messages import Sampling, Span, Version
from producers.engines.sglang.engine import SglangEngine


class Setup(SglangAdapter):
    """A student, its versions, and an engine on servers of the test's own."""

    @property
    def student(self) -> Path:
        return self._directory / "student"

    @asynccontextmanager
    async def on(self, *urls: str) -> AsyncIterator[SglangEngine]:
        async with self._opened({"kind": "sglang", "urls": list(urls), "unreachable_s": 3.0}, 1) as engine:
            assert isinstance(engine, SglangEngine)
            yield engine


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def label_of(server: StandIn) -> str:
    _, info = await server.get("/model_info")
    assert isinstance(info, dict)
    return str(info["weight_version"])


async def test_a_server_gets_the_students_weights_before_its_first_ticket(setup: Setup) -> None:
    _, other = setup.publish(Version(9, 9))
    async with stand_in(other) as server, setup.on(server.url) as engine:
        assert await label_of(server) == "default"
        await engine.generate(ticket(1, 3))
        assert (await label_of(server)).startswith("t0-s0-")
        assert server.service.path == str(setup.student)


async def test_all_servers_of_a_pool_go_over_and_tell_the_same_label(setup: Setup) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as one, stand_in(setup.student) as two, setup.on(one.url, two.url) as engine:
        await engine.update_weights(manifest, directory)
        assert await label_of(one) == await label_of(two)
        assert (await label_of(one)).startswith("t1-s3-")
        assert not one.service.paused


async def test_a_server_that_fails_leaves_rotation_with_its_reason_and_the_others_go_on(setup: Setup) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as good, scripted(refuses_weights) as (bad,), setup.on(bad.url, good.url) as engine:
        await engine.update_weights(manifest, directory)
        assert engine.version == Version(1, 3)
        assert (await engine.generate(ticket(1, 4))).versions == (Span(1, 3, 4, exact=True),)
        reasons = {server.url: server.reason for server in engine._pool.servers}
        assert "cannot change its weights" in reasons[bad.url]
        assert not reasons[good.url]


async def test_weights_that_no_server_took_are_told_and_the_version_stays(setup: Setup) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with scripted(refuses_weights) as (bad,), setup.on(bad.url) as engine:
        with pytest.raises(WeightsError, match=r"no server took weights \(1, 3\)"):
            await engine.update_weights(manifest, directory)
        assert engine.version == Version(0, 0)


async def test_a_server_that_was_started_anew_gets_the_present_weights_before_it_is_used(setup: Setup) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as server:
        async with setup.on(server.url) as engine:
            await engine.update_weights(manifest, directory)
            await server.service.update(setup.student, "default", flush=True, abort=False)  # as a new process has it
            engine._pool.take_out(engine._pool.servers[0], "it was restarted")
            answer = await engine.generate(ticket(1, 4))
        assert answer.versions == (Span(1, 3, 4, exact=True),)


async def test_weights_of_other_shapes_or_a_part_of_them_never_reach_a_server(setup: Setup, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    manifest, directory = setup.publish(Version(1, 3))
    tensors = load_file(directory / "model.safetensors")
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        await engine.generate(ticket(1, 2))
        name = "model.norm.weight"
        for damage, words in [({name: tensors[name][:5].clone()}, "as \\[5\\]"), ({}, "lacks model.norm.weight")]:
            save_file({**{k: v for k, v in tensors.items() if k != name}, **damage}, directory / "model.safetensors")
            with pytest.raises(WeightsError, match=words):
                await engine.update_weights(manifest, directory)
        assert not server.dead.is_set()
        assert server.service.path == str(setup.student)


@pytest.mark.parametrize("wish", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
async def test_a_training_ticket_whose_log_probabilities_would_be_wrong_is_refused_unsent(setup: Setup, wish: dict[str, Any]) -> None:
    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": 4, "stop_token_ids": (), **wish})
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        with pytest.raises(Rejected, match="at temperature 1 over the full vocabulary only"):
            await engine.generate(ticket(1, 4, sampling=sampling))
        assert await label_of(server) == "default"  # it was not even asked
        await engine.generate(ticket(1, 4, sampling=sampling, metadata={"evaluation": "e"}))


async def refuses_weights(_server: ScriptedServer, _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
    raise AssertionError("a server without the right weights was asked to sample")


async def test_tokens_of_a_server_that_names_no_weights_carry_the_oldest_possible_version_inexactly(setup: Setup) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        await engine.update_weights(manifest, directory)
        server.service._meta = lambda spans, retractions: {"weight_version": server.service.weight_version}  # type: ignore[method-assign]
        assert (await engine.generate(ticket(1, 4))).versions == (Span(1, 3, 4, exact=False),)


async def test_tokens_of_weights_that_somebody_else_put_there_are_inexact(setup: Setup) -> None:
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        await engine.generate(ticket(1, 2))
        server.service.name_weights("somebody-elses")
        assert (await engine.generate(ticket(2, 4))).versions == (Span(0, 0, 4, exact=False),)


async def test_a_server_started_anew_unnoticed_is_no_newer_than_its_start_and_gets_the_weights_again(setup: Setup) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        await engine.update_weights(manifest, directory)
        server.service.name_weights("default")
        assert (await engine.generate(ticket(1, 4))).versions == (Span(0, 0, 4, exact=False),)
        async with asyncio.timeout(60):
            assert (await engine.generate(ticket(2, 4))).versions == (Span(1, 3, 4, exact=True),)


async def test_tokens_under_a_fellow_producers_label_are_inexact_and_the_server_stays(setup: Setup) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        await engine.update_weights(manifest, directory)
        label = f"t1-s4-{16 * 'a'}"
        server.service.name_weights(label)
        assert (await engine.generate(ticket(1, 4))).versions == (Span(1, 3, 4, exact=False),)
        assert await label_of(server) == label


async def test_an_answer_that_somebody_aborts_is_sampled_again(setup: Setup) -> None:
    async with stand_in(setup.student) as server, setup.on(server.url) as engine:
        asked = asyncio.create_task(engine.generate(ticket(1, 800)))
        async with asyncio.timeout(60):
            while not server.service.decoding:
                await asyncio.sleep(0.005)
        await server.post("/abort_request", {"abort_all": True})
        assert len((await asked).response_ids) == 800


async def test_servers_with_an_admin_key_change_their_weights_with_it(setup: Setup, tmp_path: Path) -> None:
    manifest, directory = setup.publish(Version(1, 3))
    for name in ("user", "admin"):
        (tmp_path / name).write_text(f"{name}-key")
    async with stand_in(setup.student, api_key="user-key", admin_key="admin-key") as server:
        producer = {"kind": "sglang", "urls": [server.url], "api_key_file": tmp_path / "user", "admin_key_file": tmp_path / "admin"}
        async with setup._opened(producer, 1) as engine:
            await engine.update_weights(manifest, directory)
            assert (await engine.generate(ticket(1, 4))).versions == (Span(1, 3, 4, exact=True),)
