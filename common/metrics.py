"""The Prometheus metrics of every role, declared in one place and read from its Pulse at each scrape.

reflux_waiting_seconds_total{role, worker, cause}   wall seconds lost, by cause
reflux_cpu_seconds_total{role, worker, stage}       thread CPU seconds, by stage
reflux_process_cpu_seconds_total{role, worker}      CPU seconds of the process
reflux_count_total{role, worker, what}              samples, tokens, refused hand-offs, …
reflux_gauge{role, worker, what}                    KL, loss, staleness, … as last seen
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.errors import ConfigError
from common.pulse import Pulse

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


@contextmanager
def endpoint(pulse: Pulse, host: str, port: int) -> Iterator[None]:
    """Serves /metrics while inside; the gauge `metrics` tells the address. Raises ConfigError where the port is taken."""
    registry = CollectorRegistry()
    registry.register(_PulseCollector(pulse))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        message = f"service.metrics_port = {port} on {host} cannot be used ({error.strerror}): choose another, or 0 for any free one"
        raise ConfigError(message) from None
    pulse.set(metrics=f"http://{host}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
