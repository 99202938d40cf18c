"""Whichever role is too slow for the others: server memory stays within its bound, hand-offs go on, nobody spins, the line says who."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
import redis
from by_hand import CONFIG, ByHand, Role, roles_by_hand, slowed
from test_starvation import switched_on
from watcher import Watcher

from common.config import load_config

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(500)]

IDLE_SHARE = 0.5
"""Of a core. A role that spins takes all of one; one that waits for a slow neighbour has hardly anything to do."""
NEARLY_FULL = 0.9


class Memory:
    """The most that the server used, looked at all the time."""

    def __init__(self, url: str) -> None:
        self.most = 0
        self._client = redis.Redis.from_url(url)
        self._ended = threading.Event()

    @property
    def used(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    @contextmanager
    def watched(self) -> Iterator[None]:
        def look() -> None:
            while not self._ended.wait(0.01):
                self.most = max(self.most, self.used)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._client.close()


@contextmanager
def overloaded(example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]) -> Iterator[tuple[ByHand, Memory]]:
    """A learner, a producer and a scorer on a server that has exactly bus.max_bytes."""
    monkeypatch.setenv("REFLUX_SLOW", str(tmp_path))
    example.settings |= {
        "learner.steps": 100_000,
        "evaluation.prompts": 0,
        "service.heartbeat_s": 0.5,
        "loss.kind": "python:slow_learner:loss",
    }
    example.settings |= settings
    with roles_by_hand(example) as hand:
        with redis.Redis.from_url(hand.server.url) as client:
            client.config_set("maxmemory", example.settings["bus.max_bytes"])
        for module in ("learner", "producers", "scorers"):
            hand.start(module)
        memory = Memory(hand.server.url)
        with memory.watched():
            hand.wait_for(lambda: example.step >= 2, "step 2")
            yield hand, memory


def cpu_shares(roles: list[Role], seconds: float) -> dict[str, float]:
    """CPU seconds per second of wall time."""
    processes = {role.name: psutil.Process(role.process.pid) for role in roles}

    def spent() -> dict[str, float]:
        return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}

    begin, before = time.monotonic(), spent()
    time.sleep(seconds)
    after, elapsed = spent(), time.monotonic() - begin
    return {name: (after[name] - before[name]) / elapsed for name in processes}


def test_whoever_is_too_slow_memory_has_its_bound_hand_offs_go_on_and_nobody_spins(
    example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    window = {"learner.batch_size": 16, "learner.max_staleness": 30}
    needed = 31 * 16 * load_config(CONFIG, []).largest_sample_bytes
    with overloaded(example, tmp_path, monkeypatch, window | {"bus.max_bytes": needed}) as (hand, memory):
        learner, producer, scorer = hand.roles
        watcher = Watcher(hand.server.url)
        slow: dict[str, tuple[AbstractContextManager[None], list[Role]]] = {
            "the learner is": (switched_on(tmp_path / "training"), [producer, scorer]),
            "the scorers are": (slowed(scorer.process.pid, 0.05), [learner, producer]),
            "the producers are": (slowed(producer.process.pid, 0.05), [learner, scorer]),
        }
        for who, (how, waiting) in slow.items():
            with how:
                begin = example.step
                hand.wait_for(lambda begin=begin: example.step > begin, f"a step while {who} slow")
                hand.wait_for(lambda who=who: f"{who} the bottleneck" in watcher.line(2.0), f"the line that {who} the bottleneck")
                shares = cpu_shares(waiting, 3.0)
                print(who, shares, "most", memory.most, "of", needed)
                assert max(shares.values()) < IDLE_SHARE, (who, shares)
        last = watcher.snapshot()
        waits = {name: report.waiting.get("server memory", 0.0) for name, report in last.reports.items()}
        assert set(waits.values()) == {0.0}, "a hand-off found no room"
        assert memory.most < needed
        assert not [word for word in ("no memory left", "memory is used up") if word in hand.all_said()]
        assert all(role.process.poll() is None for role in hand.roles), hand.all_said()


def test_a_neighbour_that_fills_the_server_stops_admission_and_nothing_else(
    example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    most = 24 << 20
    with overloaded(example, tmp_path, monkeypatch, {"bus.max_bytes": most}) as (hand, memory):
        watcher = Watcher(hand.server.url)
        with redis.Redis.from_url(hand.server.url) as neighbour:
            pieces = [f"ballast-{n}" for n in range((int(0.95 * most) - memory.used) >> 16)]
            for piece in pieces:
                neighbour.set(piece, bytes(1 << 16))
            hand.wait_for(lambda: watcher.snapshot().state.live < example.settings["learner.batch_size"], "all that flows to be trained")
            hand.wait_for(lambda: "the bus is nearly full" in watcher.line(1.5), "the line that says why")
            shares = cpu_shares(hand.roles, 3.0)
            assert max(shares.values()) < IDLE_SHARE, shares
            assert NEARLY_FULL * most < memory.most < most
            reached = example.step
            neighbour.delete(*pieces)
        hand.wait_for(lambda: example.step > reached, "a step once there is room")
        assert "no memory left" not in hand.all_said()
