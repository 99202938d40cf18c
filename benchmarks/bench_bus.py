"""CPU microseconds per sample in each hop of the bus: server's and client's, at 37 and 2000 response tokens with a top-8, in batches.

python -m benchmarks.bench_bus [--samples N] [--batch N] [--server PROGRAM]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from common.bus import connect_url
from common.bus.base import SCORED, TICKETS, Bus, Move, rollouts
from common.bus.embedded import EmbeddedServer
from common.codec import encode
from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, TeacherScore, TeacherShare, Ticket, Version

ROLLOUTS = rollouts("teacher")
PROMPT = 32
TOP_K = 8


def payloads(tokens: int) -> dict[str, bytes]:
    """What each topic carries, encoded once: the codec has a benchmark of its own."""
    ids = np.arange(tokens, dtype=np.int32)
    logprobs = np.full(tokens, -0.7, dtype=np.float32)
    sampling = Sampling(temperature=1.0, max_new_tokens=tokens, stop_token_ids=(0,))
    ticket = Ticket(0, 0, "prompt", np.arange(PROMPT, dtype=np.int32), sampling, (TeacherShare("teacher", 1.0),), Version(1, 0))
    rollout = ScoredRollout(Rollout(ticket, Completion(ids, logprobs, (Span(1, 0, tokens, True),), "stop")))
    top = np.tile(ids[:, None], (1, TOP_K)), np.tile(logprobs[:, None], (1, TOP_K))
    score = TeacherScore("teacher", "0" * 64, logprobs, *top)
    return {TICKETS: encode(ticket), ROLLOUTS: encode(rollout), SCORED: encode(ScoredRollout(rollout.rollout, (score,)))}


@dataclass
class Meter:
    """CPU seconds of this process and of the server, by hop."""

    server: psutil.Process
    client_s: dict[str, float] = field(default_factory=dict)
    server_s: dict[str, float] = field(default_factory=dict)

    @asynccontextmanager
    async def hop(self, name: str) -> AsyncIterator[None]:
        client, server = time.process_time(), self._server_s()
        yield
        self.client_s[name] = self.client_s.get(name, 0.0) + time.process_time() - client
        self.server_s[name] = self.server_s.get(name, 0.0) + self._server_s() - server

    def _server_s(self) -> float:
        times = self.server.cpu_times()
        return float(times.user + times.system)


async def move_all(bus: Bus, source: str, target: str, payload: bytes, batch: int) -> None:
    while leases := await bus.lease([source], batch, 0):
        await bus.hand_off([Move(lease, target, payload) for lease in leases])


async def settle_all(bus: Bus, batch: int) -> None:
    while leases := await bus.lease([SCORED], batch, 0):
        await bus.settle(1, leases)


async def measure(bus: Bus, meter: Meter, carried: dict[str, bytes], samples: int, batch: int, first: int) -> None:
    async def admit() -> None:
        for seq in range(first, first + samples, batch):
            await bus.admit(1, seq, [(n, carried[TICKETS]) for n in range(seq, min(seq + batch, first + samples))])

    hops: dict[str, Awaitable[None]] = {
        "admit": admit(),
        "producer: lease, hand off": move_all(bus, TICKETS, ROLLOUTS, carried[ROLLOUTS], batch),
        "scorer: lease, hand off": move_all(bus, ROLLOUTS, SCORED, carried[SCORED], batch),
        "learner: lease, settle": settle_all(bus, batch),
    }
    for name, hop in hops.items():
        async with meter.hop(name):
            await hop


async def bench(samples: int, batch: int, server: Path | None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with (
            EmbeddedServer.start(Path(directory), binary=server) as running,
            connect_url(running.url, run="bench", name="bench", lease_s=600.0, outage_timeout_s=10.0) as bus,
        ):
            await bus.claim(1, "bench", 600.0, False)
            first = 0
            for tokens, count in ((37, samples), (2000, max(batch, samples // 8))):
                carried = payloads(tokens)
                await measure(bus, Meter(psutil.Process(running.pid)), carried, batch, batch, first)  # warms up
                meter = Meter(psutil.Process(running.pid))
                await measure(bus, meter, carried, count, batch, first + batch)
                first += batch + count
                report(meter, tokens, count, batch, carried)


def report(meter: Meter, tokens: int, samples: int, batch: int, carried: dict[str, bytes]) -> None:
    sizes = ", ".join(f"{topic.partition(':')[0]} {len(payload)} B" for topic, payload in carried.items())
    print(f"{tokens} response tokens, top-{TOP_K}, {samples} samples in batches of {batch} ({sizes}); CPU µs per sample:")
    for hop in meter.client_s:
        print(f"  {hop:28} client {1e6 * meter.client_s[hop] / samples:7.1f}   server {1e6 * meter.server_s[hop] / samples:7.1f}")
    total = [1e6 * sum(seconds.values()) / samples for seconds in (meter.client_s, meter.server_s)]
    print(f"  {'all hops':28} client {total[0]:7.1f}   server {total[1]:7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--server", type=Path, help="a server program instead of the embedded one")
    arguments = parser.parse_args()
    asyncio.run(bench(arguments.samples, arguments.batch, arguments.server))


if __name__ == "__main__":
    main()
