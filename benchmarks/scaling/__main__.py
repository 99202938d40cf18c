"""`make bench-scaling`: scorers join and leave while a load of 512-token rollouts runs; does throughput follow?

Real: the scorer processes (`python -m scorers`), their HTTP, the Redis-protocol server, every call on it. Stood in for: the teachers'
servers, which wait as long as a GPU would compute (teachers.py), the producers, which answer at once, and the learner, which waits for
`--step` seconds per batch instead of computing (load.py). Ideal is what n teachers that are never idle score, or what the learner can take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any  # JSON values

import psutil
import tomli_w

from benchmarks.rates import ROOT
from benchmarks.scaling import page
from benchmarks.scaling.fleet import Fleet, Scorer
from benchmarks.scaling.load import RESPONSE, TEACHER, TOKENS, Load
from benchmarks.scaling.teachers import ideal_rate
from common import bus as buses
from common.bus.embedded import EmbeddedServer
from common.bus.redis_client import RedisClient
from common.config import RunConfig, load_config
from common.pulse import Report

_MODELS = ROOT / "examples/arithmetic/models"
_BATCH = 64
_STALENESS = 15
_LEASE_TOKENS = 8192
_SETTLE_S = 2.0
_PATIENCE_S = 45.0
Values = dict[str, Any]


def prepare(place: Path) -> RunConfig:
    """A run in `place` whose teacher has servers only, and takes long answers."""
    model = place / "teacher"
    shutil.copytree(_MODELS / "teacher", model, ignore=shutil.ignore_patterns("*.safetensors"))
    values = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 2 * TOKENS}
    (model / "config.json").write_text(json.dumps(values))
    settings = {
        "run.name": "scaling",
        "run.dir": place,
        f"teachers.{TEACHER}.kind": "sglang",
        f"teachers.{TEACHER}.path": model,
        f"teachers.{TEACHER}.urls": '["http://127.0.0.1:1"]',  # each scorer is told its own
        "sampling.max_new_tokens": RESPONSE,
        "learner.batch_size": _BATCH,
        "learner.max_staleness": _STALENESS,
        "scorer.lease_tokens": _LEASE_TOKENS,
        "evaluation.prompts": 0,
        "service.heartbeat_s": 0.25,
    }
    return load_config(ROOT / "examples/arithmetic/run.toml", [f"{key}={value}" for key, value in settings.items()])


class Bench:
    """One measurement after the other on a running pipeline."""

    def __init__(self, *, fleet: Fleet, load: Load, server_pid: int, learner_rate: float, seconds: float) -> None:
        self._fleet, self._load = fleet, load
        self._server_pid = server_pid
        self._learner_rate = learner_rate
        self._seconds = seconds

    async def go_to(self, count: int) -> Values:
        """Changes the number of scorers and measures."""
        before = len(self._fleet.members)
        joined = [await self._joined(one) for one in await self._fleet.grow(count)] if count > before else []
        left = [asdict(departure) for departure in await self._fleet.shrink(count)] if count < before else []
        await self._settle()
        return {"change": "−" if left else "+" if before else "", "joined": joined, "left": left, **await self._measured(count)}

    async def _joined(self, one: Scorer) -> Values:
        limit = time.monotonic() + _PATIENCE_S
        while one.name not in self._load.seen.first:
            assert time.monotonic() < limit, f"{one.name} scores nothing"
            await asyncio.sleep(0.02)
        return {"start": one.up - one.started, "share": self._load.seen.first[one.name] - one.up}

    async def _measured(self, count: int) -> Values:
        """Rates are those of the scorers: what they handed off between two of their own reports."""
        seen, names = self._load.seen, [one.name for one in self._fleet.members]
        began, idle, server, before = time.monotonic(), seen.idle, _cpu_s(self._server_pid), await self._fleet.reports()
        await asyncio.sleep(self._seconds)
        elapsed, idle, server = time.monotonic() - began, seen.idle - idle, _cpu_s(self._server_pid) - server
        after = await self._fleet.reports()
        rates = [_per_second(before[name], after[name], lambda report: report.counters["samples"]) for name in names]
        cpu = sum(_per_second(before[name], after[name], lambda report: report.process_s) for name in names)
        rate, ideal = sum(rates), min(count * ideal_rate(TOKENS), self._learner_rate)
        return {
            "scorers": count,
            "rate": rate,
            "ideal": ideal,
            "share": rate / ideal,
            "idle": idle / elapsed,
            "evenness": min(rates) * count / rate,
            "backlog": (await self._fleet.waiting())[0],
            "scorer_ms": 1e3 * cpu / rate,
            "server_ms": 1e3 * server / elapsed / rate,
        }

    async def _settle(self) -> None:
        """A moment, and until the learner has worked off what was scored before."""
        await asyncio.sleep(_SETTLE_S)
        limit = time.monotonic() + _PATIENCE_S
        while time.monotonic() < limit and (await self._fleet.waiting())[1] > _BATCH:  # noqa: ASYNC110 - others' progress
            await asyncio.sleep(0.1)


def _per_second(before: Report, after: Report, value: Callable[[Report], float]) -> float:
    return (value(after) - value(before)) / (after.at - before.at)


def cpu_name() -> str:
    """As the kernel has it."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return named[1] if named else platform.machine()


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@contextmanager
def _teachers(count: int) -> Iterator[list[int]]:
    """Their ports."""
    command = [sys.executable, "-m", "benchmarks.scaling.teachers", str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


async def measure(counts: list[int], *, seconds: float, step_s: float, place: Path) -> Values:
    """All points."""
    config = prepare(place)
    file = place / "run.toml"
    file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    loads, points = [os.getloadavg()[0]], list[Values]()
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(_teachers(max(counts)))
        server = await stack.enter_async_context(EmbeddedServer.start(config.directory, run=config.run.name))
        producer, learner, watcher = [
            await stack.enter_async_context(buses.connect(config, name=f"{role}-bench", role=role))
            for role in ("producer", "learner", "operator")
        ]
        client = RedisClient(server.url, outage_timeout_s=60.0)
        stack.push_async_callback(client.aclose)
        load = Load(config=config, producer=producer, learner=learner, step_s=step_s)
        fleet = Fleet(config=config, file=file, ports=ports, bus=watcher, client=client)
        stack.callback(fleet.kill)
        bench = Bench(fleet=fleet, load=load, server_pid=server.pid, learner_rate=_BATCH / step_s, seconds=seconds)
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(end(), name=end.__name__) for end in (load.produce, load.fetch, load.train)]
            for count in counts:
                points.append(await bench.go_to(count))
                print(page.points({"points": points[-1:]}).splitlines()[-1], flush=True)
            await fleet.shrink(0)
            for end in ends:
                end.cancel()
        state = await watcher.state()
    loads.append(os.getloadavg()[0])
    about = {"date": time.strftime("%Y-%m-%d"), "cpu": cpu_name(), "cores": os.cpu_count(), "load": loads, "seconds": seconds}
    about |= {"learner_rate": _BATCH / step_s, "window": config.window, "held_most": 2 * max(counts) * (_LEASE_TOKENS // TOKENS)}
    about |= {"cursor": state.cursor, "applied": state.applied, "live": state.live, "dead": state.dead, "twice": load.seen.twice}
    return {"setting": about, "points": points}


def verdict(found: Values) -> list[str]:
    """What is not as it should be."""
    about, complaints = found["setting"], []
    for point in found["points"]:
        if point["scorers"] <= 8 and point["share"] < 0.9:
            complaints.append(f"{point['scorers']} scorers reach {point['share']:.2f} of the ideal")
        complaints += [f"a new scorer took {one['share']:.1f} s" for one in point["joined"] if one["share"] > 2]
    if about["twice"] or about["dead"] or about["cursor"] != about["applied"] + about["live"]:
        complaints.append("samples were lost, given up or applied twice")
    if about["window"] < 2 * about["held_most"]:
        complaints.append("the window is too small for so many scorers")
    return complaints


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument(
        "--scorers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 8, 4, 2, 1], metavar="N", help="one point after the other"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each point")
    parser.add_argument("--step", type=float, default=0.4, help="seconds of the learner's step")
    parser.add_argument("--write-docs", action="store_true", help="docs/scaling.md, docs/scaling.json and docs/scaling.png")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="reflux-scaling-"))
    try:
        found = asyncio.run(measure(given.scorers, seconds=given.seconds, step_s=given.step, place=place))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for make in page.SECTIONS.values():
        print(f"\n{make(found)}")
    if given.write_docs:
        (ROOT / "docs/scaling.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        page.write(ROOT / "docs/scaling.md", found)
        page.plot(found, ROOT / "docs/scaling.png")
    complaints = verdict(found)
    print("".join(f"\nNOT AS IT SHOULD BE: {one}" for one in complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
