"""metrics-targets.json in the run's directory: where every role that lives now can be scraped, as Prometheus' file_sd_configs reads it.

Roles on a cluster take free ports on nodes that nobody knows beforehand; their heartbeats say which. The file is replaced as a whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any  # JSON

from common.pulse import Report
from deploy.snapshot import Snapshot

FILE = "metrics-targets.json"
_EVERYWHERE = {"0.0.0.0", "[::]"}  # noqa: S104 - compared with, not bound
_PERIOD_S = 5.0


def targets_of(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """One entry per role."""
    found = []
    for report in sorted(reports, key=lambda report: report.name):
        address = str(report.gauges.get("metrics", "")).removeprefix("http://").removesuffix("/metrics")
        if address:
            host, _, port = address.rpartition(":")
            found.append({"targets": [f"{report.host if host in _EVERYWHERE else host}:{port}"], "labels": {"reflux_role": report.role}})
    return found


async def write_targets(directory: Path, latest: Callable[[], Snapshot]) -> None:
    """For ever; the file is touched only where something has changed."""
    before = None
    while True:
        if (now := targets_of(latest().reports.values())) != before:
            temporary = directory / f"{FILE}.tmp"
            temporary.write_text(json.dumps(now, indent=1) + "\n")
            temporary.replace(directory / FILE)
            before = now
        await asyncio.sleep(_PERIOD_S)
