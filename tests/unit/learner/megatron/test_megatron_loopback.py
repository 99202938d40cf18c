"""Ranks that the learner starts itself meet on loopback; nobody on the network can join or listen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common.bus.embedded import free_port
from learner.nodes import Node

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = """
import json, psutil
import torch.distributed as dist
from learner.megatron.distributed import start, stop
start(tensor_parallel=1, seed=1, timeout_s=60)
dist.barrier()
print(json.dumps([one.laddr.ip for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN]))
dist.barrier()
stop()
"""


def test_ranks_on_one_machine_listen_on_loopback_alone(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    machine = Node(0, 1, 2, "127.0.0.1", free_port())
    ranks = []
    for rank in range(machine.ranks):
        for name, value in machine.environment(rank).items():
            monkeypatch.setenv(name, value)
        ranks.append(subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROGRAM], stdout=subprocess.PIPE, text=True))
    said = [rank.communicate(timeout=100)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    addresses = [json.loads(text.splitlines()[-1]) for text in said]
    assert all(addresses), "each listens somewhere"
    assert {address for listening in addresses for address in listening} == {"127.0.0.1"}
