"""The Prometheus metrics of every role, declared in one place and read from its Pulse at each scrape.

reflux_waiting_seconds_total{role, worker, cause}   wall seconds lost, by cause
reflux_cpu_seconds_total{role, worker, stage}       thread CPU seconds, by stage
reflux_process_cpu_seconds_total{role, worker}      CPU seconds of the process
reflux_count_total{role, worker, what}              samples, tokens, refused hand-offs, …
reflux_gauge{role, worker, what}                    KL, loss, staleness, … as last seen
"""

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

_log = logging.getLogger(__name__)

_LABELS = ("role", "worker")


class _PulseCollector(Collector):
    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse

    def collect(self) -> Iterator[Metric]:
        report = self._pulse.report()
        who = (report.role, report.name)
        yield _counter("reflux_waiting_seconds", "wall seconds lost, by cause", "cause", who, report.waiting)
        yield _counter("reflux_cpu_seconds", "thread CPU seconds, by stage", "stage", who, report.cpu)
        yield _counter("reflux_count", "events", "what", who, report.counters)
        process = CounterMetricFamily("reflux_process_cpu_seconds", "CPU seconds of the process", labels=_LABELS)
        process.add_metric(who, report.process_s)
        yield process
        gauge = GaugeMetricFamily("reflux_gauge", "as last seen", labels=(*_LABELS, "what"))
        for what, value in report.gauges.items():
            if not isinstance(value, str):
                gauge.add_metric((*who, what), value)
        yield gauge


def _counter(name: str, text: str, label: str, who: tuple[str, str], values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(*_LABELS, label))
    for key, value in values.items():
        family.add_metric((*who, key), value)
    return family


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
