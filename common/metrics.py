"""Serves every role's Prometheus metrics: what common/series.py declares, read from the role's Pulse at each scrape."""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any  # what the standard library's servers pass on

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.errors import ConfigError
from common.pulse import Pulse
from common.series import COUNT, CPU, GAUGE, GAUGES, LABELLED, PROCESS, WAITING, Family

_log = logging.getLogger(__name__)

_LABELS = ("role", "worker")


class _PulseCollector(Collector):
    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse

    def collect(self) -> Iterator[Metric]:
        report = self._pulse.report()
        who = (report.role, report.name)
        yield _family(WAITING, who, report.waiting)
        yield _family(CPU, who, report.cpu)
        yield _family(COUNT, who, report.counters)
        yield _family(PROCESS, who, {"": report.process_s})
        numbers = {name: value for name, value in report.gauges.items() if not isinstance(value, str)}
        yield _family(GAUGE, who, {name: value for name, value in numbers.items() if name in GAUGES})
        for prefix, family in LABELLED.items():
            start = f"{prefix}:"
            yield _family(family, who, {name.removeprefix(start): value for name, value in numbers.items() if name.startswith(start)})


def _family(family: Family, who: tuple[str, str], values: Mapping[str, float]) -> Metric:
    labels = (*_LABELS, family.label) if family.label else _LABELS
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name.removesuffix("_total"), family.text, labels=labels)
    for key, value in values.items():
        metric.add_metric((*who, key) if family.label else who, value)
    return metric


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics, to whoever has the token where there is one; everything else is refused."""

    registry: CollectorRegistry
    token = ""
    timeout = 10  # seconds for a client to say what it wants

    def do_GET(self) -> None:
        """One scrape."""
        given = self.headers.get("Authorization", "")
        if self.token and not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            self._answer(HTTPStatus.UNAUTHORIZED, b"", ("WWW-Authenticate", "Bearer"))
        elif self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, b"")
        else:
            self._answer(HTTPStatus.OK, generate_latest(self.registry), ("Content-Type", CONTENT_TYPE_LATEST))

    def _answer(self, status: HTTPStatus, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Scrapes are no events."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no event."""


@contextmanager
def endpoint(pulse: Pulse, host: str, port: int, token: str = "") -> Iterator[None]:
    """Serves /metrics while inside, read-only; the gauge `metrics` tells the address. Raises ConfigError where the port is taken."""
    registry = CollectorRegistry()
    registry.register(_PulseCollector(pulse))
    handler = type("Handler", (_Handler,), {"registry": registry, "token": token})
    try:
        server = _Server((host, port), handler)
    except OSError as error:
        message = f"service.metrics_port = {port} on {host} cannot be used ({error.strerror}): choose another, or 0 for any free one"
        raise ConfigError(message) from None
    address = f"http://{host}:{server.server_port}/metrics"
    pulse.set(metrics=address)
    _log.info("metrics", extra={"metrics": address})
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
