"""Tokens per CPU-second of each stage, the overheads of a real run, CPU per rollout in each hop, publication's latency: `make bench`.

Prints tables and writes docs/benchmarks.json; --write-docs puts the tables into docs/benchmarks.md too. Takes about ten minutes on two free
cores; --quick goes through everything in two, for figures that mean nothing. What each figure is stands in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any  # JSON values

from benchmarks import observed_run, page, rates, split

DOCS = rates.ROOT / "docs"
PARTS = ("rates", "run", "bus")
_HOP = re.compile(r"^  (.+?) +client +([\d.]+) +server +([\d.]+)$")


def bus_hops(*, quick: bool) -> list[dict[str, Any]]:
    """bench_bus's lines."""
    command = [sys.executable, "-m", "benchmarks.bench_bus", "--samples", "640" if quick else "6400"]
    text = subprocess.run(command, cwd=rates.ROOT, capture_output=True, text=True, check=True).stdout
    rows, tokens = [], ""
    for line in text.splitlines():
        if match := _HOP.match(line):
            rows.append({"hop": match[1], "tokens": tokens, "client": float(match[2]), "server": float(match[3])})
        else:
            tokens = line.partition(" ")[0]
    return rows


def setting(given: argparse.Namespace) -> dict[str, Any]:
    """What a reader must know of the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": version("torch"),
        "load": round(os.getloadavg()[0], 2),
        "rounds": given.rounds,
        "steps": given.steps,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="some of the parts; the others' figures stay as they were")
    parser.add_argument("--rounds", type=int, help="of the rates, ours and plain in turn (default: 3)")
    parser.add_argument("--steps", type=int, help="of the run (default: 200)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="change a key of the run")
    parser.add_argument("--quick", action="store_true", help="show that everything works; writes no file")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--from-json", action="store_true", help="measure nothing: the tables of the last docs/benchmarks.json")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.steps = given.steps or (20 if given.quick else 200)
    if given.quick:
        given.settings = ["evaluation.prompts=64", *given.settings]
    return given


def main() -> None:
    """Measures, prints, writes."""
    given = arguments()
    file = DOCS / "benchmarks.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not given.quick else {}
    if not given.from_json:
        found["setting"] = setting(given)
        if "rates" in given.only:
            found["rates"] = rates.measure(given.rounds, quick=given.quick)
        if "run" in given.only:
            found["run"] = split.split(observed_run.observe(given.steps, given.settings))
        if "bus" in given.only:
            found["bus"] = bus_hops(quick=given.quick)
    print("\n\n".join(page.sections(found).values()))
    if not given.quick:
        file.write_text(json.dumps(found, indent=1) + "\n")
        if given.write_docs:
            page.write(DOCS / "benchmarks.md", found)


if __name__ == "__main__":
    main()
