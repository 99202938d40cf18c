"""A run whose weights lie in an object store: written by the learner, rebuilt from deltas by the producer, none on a shared disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 8
SECRET = "no-word-of-it"


@pytest.fixture
def s3_url(tmp_path: Path) -> Iterator[str]:
    """moto in a process of its own, with one bucket."""
    command = [sys.executable, "-c", "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"]
    log = tmp_path / "moto.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as server:
        try:
            url = ""
            while not url:
                assert server.poll() is None, log.read_text()
                found = re.search(r"Running on (http://127\.0\.0\.1:\d+)\n", log.read_text())
                url = found[1] if found else ""
            with urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=60):
                yield url
        finally:
            server.kill()


def test_a_run_whose_weights_lie_on_s3_is_proven(example, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {"AWS_ENDPOINT_URL": s3_url, **accounts}.items():
        monkeypatch.setenv(name, value)
    example.settings |= {"learner.steps": STEPS, "optimizer.lr": 1e-6, "weights.dtype": "bfloat16", "weights.full_every": 3}
    example.settings |= {"weights.url": "s3://bucket/runs/mine", "weights.keep": 4}
    done = example.go("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert example.result["ledger"]["applied"] == STEPS * example.settings["learner.batch_size"]
    assert not (example.directory / "weights").exists()
    names = sorted(_names(s3_url))
    whole = [name.split("/")[2] for name in names if name.endswith("manifest.rfx")]
    assert whole[-1] == f"term000001-step{STEPS:08d}"
    assert any(name.endswith("delta.safetensors") for name in names)
    assert len(whole) < STEPS, "what is not kept is deleted"
    assert len(names) == 2 * len(whole), "and nothing is left of it, nor of preflight's version"
    audit = example.go("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    shown = "".join(path.read_text(errors="replace") for path in example.directory.rglob("*") if path.suffix in {".log", ".json", ".toml"})
    assert SECRET not in shown + done.stdout + done.stderr
    example.settings["weights.url"] = "s3://misspelt/runs/mine"
    refused = example.go("run", "--fresh")
    assert refused.returncode != 0
    assert "s3://misspelt/runs/mine" in " ".join(refused.stdout.split()) + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


def _names(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/bucket?list-type=2", timeout=60) as answer:
        return re.findall(r"<Key>([^<]+)</Key>", json.dumps(answer.read().decode()))
