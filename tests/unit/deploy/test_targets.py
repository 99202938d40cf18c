"""Where the roles of a cluster can be scraped."""

import asyncio
import json
from pathlib import Path

from common.pulse import Report
from deploy.snapshot import Snapshot
from deploy.targets import FILE, targets_of, write_targets

REPORTS = [
    Report("scorer", "scorer-b", host="node7", gauges={"metrics": "http://0.0.0.0:9101/metrics"}),
    Report("learner", "learner-a", host="node1", gauges={"metrics": "http://127.0.0.1:9100/metrics"}),
    Report("producer", "producer-c", host="node2"),  # has not said yet
]
WANTED = [
    {"targets": ["127.0.0.1:9100"], "labels": {"reflux_role": "learner"}},
    {"targets": ["node7:9101"], "labels": {"reflux_role": "scorer"}},
]


def test_a_role_that_listens_everywhere_is_reached_by_its_node_s_name() -> None:
    assert targets_of(REPORTS) == WANTED


async def test_the_file_follows_the_heartbeats(tmp_path: Path) -> None:
    look = Snapshot(1.0, {report.name: report for report in REPORTS})
    task = asyncio.create_task(write_targets(tmp_path, lambda: look), name="targets")
    async with asyncio.timeout(60):
        while not (tmp_path / FILE).exists():
            await asyncio.sleep(0.01)
    task.cancel()
    assert json.loads((tmp_path / FILE).read_text()) == WANTED
