"""The dashboard over real HTTP: it tells what its source says, changes nothing, and lets in who may."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from served_dashboard import served

from deploy.report.page import page


class Told:
    """A source that says what it was asked."""

    opened_now = False

    def facts(self) -> dict[str, Any]:
        return {"run": "<b>r</b>"}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        self.opened_now = True
        yield
        self.opened_now = False

    def document(self, epoch: str, revision: int, edition: int) -> dict[str, Any]:
        return {"asked": [epoch, revision, edition]}

    async def rollout(self, step: int, seq: int) -> dict[str, Any] | None:
        return {"step": step, "seq": seq} if step == 1 else None


async def ask(address: str, **options: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(address, **options) as reply:
        return reply.status, await reply.text()


async def test_the_page_comes_whole_and_its_data_follow_as_json() -> None:
    source = Told()
    async with served(source) as address:
        assert source.opened_now
        status, text = await ask(address)
        assert status == 200
        assert "\\u003cb>r" in text
        assert "src=" not in text  # nothing is loaded from elsewhere
        assert json.loads((await ask(address + "state?epoch=e&revision=3&edition=2"))[1]) == {"asked": ["e", 3, 2]}
        assert json.loads((await ask(address + "rollouts/1/7"))[1]) == {"step": 1, "seq": 7}
        assert (await ask(address + "rollouts/2/7"))[0] == 404
        for wrong in ("state?revision=x", f"state?edition={'9' * 5000}", f"rollouts/1/{'9' * 5000}", "rollouts/1/x"):
            assert (await ask(address + wrong))[0] == 400, wrong
        assert await ask(address + "healthz") == (200, "ok")
    assert not source.opened_now


async def test_numbers_and_characters_that_are_none_blank_no_page() -> None:
    """A divergence of the mismatch, or a worker that sends nonsense."""

    class Diverged(Told):
        def document(self, epoch: str, revision: int, edition: int) -> dict[str, Any]:
            return {"steps": [{"step": 1, "behaviour_kl": float("inf")}], "now": {"kl": float("nan"), "of": (0.5, "NaN", "\ud800")}}

    async with served(Diverged()) as address:
        status, text = await ask(address + "state")
    assert (status, json.loads(text, parse_constant=pytest.fail)) == (
        200,
        {"steps": [{"step": 1, "behaviour_kl": None}], "now": {"kl": None, "of": [0.5, "NaN", "?"]}},
    )
    assert '"kl":null' in page({"kl": float("-inf")})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_changed(method: str) -> None:
    async with served(Told()) as address, aiohttp.ClientSession() as session:
        for path in ("", "state", "rollouts/1/7", "healthz"):
            async with session.request(method, address + path) as reply:
                assert reply.status == 405


async def test_a_page_of_another_site_is_not_answered() -> None:
    async with served(Told()) as address, aiohttp.ClientSession() as session:
        assert (await ask(address, headers={"Host": "evil.example"}))[0] == 400
        assert (await ask(address, headers={"Host": "localhost"}))[0] == 200
        async with session.get(address) as reply:
            assert reply.headers["X-Frame-Options"] == "DENY"
            assert "Access-Control-Allow-Origin" not in reply.headers


async def test_with_a_token_nobody_reads_anything_without_it() -> None:
    async with served(Told(), token="word-1") as address:
        for path in ("", "state", "rollouts/1/7"):
            for query in ("", "?token=", "?token=word"):
                status, text = await ask(address + path + query)
                assert (status, "r</b>" in text, "asked" in text) == (401, False, False)
        assert (await ask(address + "state", headers={"Authorization": "Bearer wrong"}))[0] == 401
        assert (await ask(address + "healthz"))[0] == 200


async def test_the_token_in_the_address_moves_into_a_cookie_that_scripts_cannot_read() -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    async with served(Told(), token="word") as address, aiohttp.ClientSession(cookie_jar=jar) as session:
        async with session.get(address + "?token=word", allow_redirects=False) as reply:
            assert reply.status == 307
            assert reply.headers["Location"] == "/"
            assert "HttpOnly" in reply.headers["Set-Cookie"]
            assert "samesite=strict" in reply.headers["Set-Cookie"].lower()
        async with session.get(address + "state") as reply:
            assert reply.status == 200
        assert (await ask(address + "state", headers={"Authorization": "Bearer word"}))[0] == 200


def test_data_cannot_end_the_script_that_holds_them() -> None:
    text = page({"run": "</script><script>alert(1)</script>\u2028"})
    assert text.count("</script>") == page({"run": ""}).count("</script>")
    assert "\u2028" not in text
