"""The pulse counts what a worker does, and its report travels as JSON."""

from __future__ import annotations

import time
import urllib.request

import pytest

from common.errors import ConfigError
from common.metrics import endpoint
from common.pulse import Pulse, Report


def test_an_open_wait_is_the_state_and_counts_already() -> None:
    pulse = Pulse("scorer", "scorer-1")
    pulse.state("scores")
    with pulse.waiting("rollouts"):
        report = pulse.report()
        assert report.state == "waits for rollouts"
        assert report.waiting["rollouts"] >= 0
    assert pulse.report().state == "scores"


def test_cpu_seconds_count_work_and_not_sleep() -> None:
    pulse = Pulse()
    began = time.monotonic()
    with pulse.cpu("forward"):
        sum(range(200_000))
        time.sleep(0.3)
    assert 0 < pulse.report().cpu["forward"] < time.monotonic() - began - 0.2


def test_a_report_survives_the_wire_and_unknown_keys() -> None:
    pulse = Pulse("producer", "producer-1")
    pulse.add(tokens=5, samples=1)
    pulse.set(kl=0.25, teacher="t")
    report = Report.decode(pulse.report().encode())
    assert report.counters == {"tokens": 5, "samples": 1}
    assert report.gauges == {"kl": 0.25, "teacher": "t"}
    newer = pulse.report().encode()[:-1] + b',"from_the_future":1}'
    assert Report.decode(newer).role == "producer"


def test_prometheus_reads_the_pulse_at_each_scrape() -> None:
    pulse = Pulse("learner", "learner-1")
    with endpoint(pulse, "127.0.0.1", 0):
        pulse.add(samples=3)
        address = str(pulse.report().gauges["metrics"])
        with urllib.request.urlopen(address, timeout=60) as reply:
            text = reply.read().decode()
    assert 'reflux_count_total{role="learner",what="samples",worker="learner-1"} 3.0' in text


def test_a_taken_port_is_one_sentence() -> None:
    pulse = Pulse()
    with endpoint(pulse, "127.0.0.1", 0):
        port = int(str(pulse.report().gauges["metrics"]).rsplit(":", 1)[1].split("/")[0])
        with pytest.raises(ConfigError, match=f"service.metrics_port = {port}"), endpoint(Pulse(), "127.0.0.1", port):
            pass
