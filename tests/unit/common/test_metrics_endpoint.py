"""The Prometheus endpoint only shows, only /metrics, and with a token only to who has it."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from common import metrics
from common.pulse import Pulse


def ask(address: str, method: str = "GET", path: str = "/metrics", token: str = "") -> tuple[int, bytes]:
    host = address.removeprefix("http://").removesuffix("/metrics")
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path, headers={"Authorization": token} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(params=["", "secret"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    pulse = Pulse("learner", "learner-1")
    with metrics.endpoint(pulse, "127.0.0.1", 0, request.param):
        yield str(pulse.report().gauges["metrics"]), f"Bearer {request.param}" if request.param else ""


def test_a_scrape_shows_what_the_process_costs(served: tuple[str, str]) -> None:
    address, token = served
    status, body = ask(address, token=token)
    assert status == 200
    assert b"reflux_process_cpu_seconds_total" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(served: tuple[str, str], method: str) -> None:
    assert ask(served[0], method, token=served[1])[0] == 501


@pytest.mark.parametrize("path", ["/", "/metrics/../x", "/debug"])
def test_nothing_else_is_shown(served: tuple[str, str], path: str) -> None:
    assert ask(served[0], path=path, token=served[1])[0] == 404


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer guess", "Basic secret", "secret", "Bearer secret2", "Bearer s\xe9cret"])
def test_without_the_token_nothing_is_shown(given: str) -> None:
    pulse = Pulse("learner", "learner-1")
    with metrics.endpoint(pulse, "127.0.0.1", 0, "secret"):
        status, body = ask(str(pulse.report().gauges["metrics"]), token=given)
    assert (status, body) == (401, b"")
