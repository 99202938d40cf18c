"""A Ray cluster of two nodes, both on this machine: one of them is lost in mid-run, and another one joins."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from by_hand import Server
from test_ray import ROOT, command, wait_for_step

pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its head has room for learner and producer alone."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20})
    yield made
    made.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 << 20)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_what_ran_on_a_lost_node_goes_on_where_there_is_room_again(cluster: Any, tmp_path: Path) -> None:
    node = add_node(cluster)
    server = Server(tmp_path / "server")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    changed = {"bus.url": server.url, "cluster.patience_s": 200, "learner.steps": 60}
    line = command("up", tmp_path, "--ray", cluster.address, "--scorers", "2", **changed)
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
    try:
        wait_for_step(tmp_path, 4, up)
        cluster.remove_node(node, allow_graceful=False)
        add_node(cluster)
        assert up.wait(500) == 0, (tmp_path / "up.log").read_text()
        audit = subprocess.run(command("audit", tmp_path, **changed), env=environment, capture_output=True, text=True, check=False)
    finally:
        up.kill()
        up.wait()
        server.kill()
    said = (tmp_path / "up.log").read_text()
    assert said.count("its actor or its node was lost") >= 2, said
    result = json.loads((tmp_path / "ray/result.json").read_text())
    assert result["ledger"]["applied"] == 60 * 64
    assert audit.returncode == 0, audit.stdout + audit.stderr
    told_to_ray = "".join(path.read_text() for path in Path(cluster.head_node.get_logs_dir_path()).glob("worker-*.out"))
    assert told_to_ray.count("scorers.service: is ready") >= 2, "what `ray logs` shows of an actor is its role's log"
