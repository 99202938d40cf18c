"""A server that reads a long append-only file at its start is waited for as long as it gets on."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from common.bus import embedded
from common.bus.embedded import EmbeddedServer
from common.errors import BusError

ANSWERS = embedded._answers


async def test_a_server_that_gets_on_with_loading_is_waited_for_beyond_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count()

    async def loaded(url: str) -> str:
        return str(next(read))

    async def answers(url: str) -> bool:
        return next(read) > 8 and await ANSWERS(url)

    monkeypatch.setattr(embedded, "_START_S", 0.45)
    monkeypatch.setattr(embedded, "_loaded", loaded)
    monkeypatch.setattr(embedded, "_answers", answers)
    async with EmbeddedServer.start(tmp_path) as server:
        assert server.alive


async def test_a_server_that_is_stuck_while_loading_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def loaded(url: str) -> str:
        return "7"

    async def answers(url: str) -> bool:
        return False

    monkeypatch.setattr(embedded, "_START_S", 0.3)
    monkeypatch.setattr(embedded, "_loaded", loaded)
    monkeypatch.setattr(embedded, "_answers", answers)
    with pytest.raises(BusError, match="did not start"):
        async with EmbeddedServer.start(tmp_path):
            pass
