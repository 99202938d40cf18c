"""Every exchange that was recorded from a real server, played back over HTTP to the client: each ends in its reply or in a named error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from recorded import FIXTURES, SHAPE, exchange, request_of

from common.errors import ConfigError
from common.sglang.budget import Budget
from common.sglang.keys import Keys
from common.sglang.reply import BadReply, parse_sampled, parse_scores
from common.sglang.server import Busy, Refused, Server, Unanswered

NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))
ANSWERED = [name for name in NAMES if exchange(name)["request"]["path"] == "/generate" and exchange(name)["response"].get("status") == 200]


class Player:
    """Answers every request with `recorded`; the connection breaks where the real server died."""

    recorded: dict[str, Any]
    url: str

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = self.recorded["response"]
        if response.get("status") is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if response.get("json") is not None:
            return web.json_response(response["json"], status=response["status"])
        return web.Response(text=response.get("text") or "", status=response["status"])


@pytest_asyncio.fixture
async def player() -> AsyncIterator[Player]:
    playing, app = Player(), web.Application()
    app.router.add_route("*", "/{path:.*}", playing.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    playing.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield playing
    await runner.cleanup()


def said(response: dict[str, Any]) -> str:
    """The words of a refusal, wherever in its body they stand."""
    body = response.get("json")
    if body is None:
        return (response.get("text") or "").strip()
    error = body.get("error", body)
    return str(error.get("message", error) if isinstance(error, dict) else error)


@pytest.mark.parametrize("name", NAMES)
async def test_every_recorded_exchange_ends_in_its_reply_or_in_a_named_error(name: str, player: Player) -> None:
    player.recorded = exchange(name)
    asked, response = player.recorded["request"], player.recorded["response"]
    async with aclosing(Server(player.url, keys=Keys(), budget=Budget(1000))) as server:
        call = server.call(asked.get("method") or "POST", asked["path"], asked["body"], deadline_s=60)
        match response.get("status"):
            case None:
                with pytest.raises(Unanswered, match="broke off"):
                    await call
            case 200 if asked["path"] == "/generate" and response.get("json") is None:
                raise AssertionError("an answer without JSON was recorded")
            case 200:
                text = response.get("text") or ""
                assert await call == (response["json"] if response.get("json") is not None or text == "null" else text)
            case 401:
                with pytest.raises(ConfigError, match="refuses the key"):
                    await call
            case 503:
                with pytest.raises(Busy):
                    await call
            case status:
                with pytest.raises(Refused) as caught:
                    await call
                assert caught.value.status == status
                assert said(response)[:200] in str(caught.value)


@pytest.mark.parametrize("name", ANSWERED)
def test_every_recorded_answer_is_read_or_refused_with_a_reason(name: str) -> None:
    body, reply = exchange(name)["request"]["body"], exchange(name)["response"]["json"]
    if isinstance(reply, list):
        body = body | {"input_ids": body["input_ids"][0], "sampling_params": body["sampling_params"][0]}
    request = request_of(body)
    scores = request.logprob_start is not None and not request.max_new_tokens
    read = parse_scores if scores else parse_sampled
    sendable = isinstance(reply, dict) and body.get("return_logprob") and (scores or request.max_new_tokens)
    if sendable and not request.refusal(SHAPE):  # as the client itself would have asked
        tokens = len(request.ids) - (request.logprob_start or 0) - 1 if scores else len(reply["output_ids"])
        assert len(read(reply, request, SHAPE.vocabulary).logprobs) == max(0, tokens)
    else:
        with pytest.raises(BadReply):
            read(reply, request, SHAPE.vocabulary)
