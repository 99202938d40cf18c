"""The whole example through servers of SGLang's protocol ends where the torch run ends (`make bench-standin` prints the figures)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.standin import on_servers, on_torch

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 200


def test_the_whole_run_through_servers_ends_with_the_torch_runs_pass_at_1(tmp_path: Path) -> None:
    torch_run, servers = on_torch(tmp_path, STEPS), on_servers(tmp_path, STEPS, students=2, teachers=2)
    for result in (torch_run, servers):
        assert (result["steps"], result["ledger"]["dead"]) == (STEPS, 0)
        assert result["pass_at_1"]["after"] > result["pass_at_1"]["before"] + 0.5
    assert abs(servers["pass_at_1"]["after"] - torch_run["pass_at_1"]["after"]) <= 0.02
