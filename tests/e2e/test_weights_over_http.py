"""A producer that shares no directory with the learner: deltas over HTTP, rebuilt on its own side."""

from __future__ import annotations

import sys

import pytest
from by_hand import roles_by_hand

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_run_whose_producer_reads_deltas_over_http_is_proven(example) -> None:
    example.settings |= {"learner.steps": 8, "evaluation.prompts": 16, "optimizer.lr": 1e-6, "weights.dtype": "bfloat16"}
    example.settings |= {"weights.full_every": 3, "weights.keep": 20}
    weights = example.directory / "weights"
    token = example.runs.parent / "token"
    token.write_text("right\n")
    with roles_by_hand(example) as hand:
        weights.mkdir(parents=True)
        server = hand.start_command([sys.executable, "-m", "deploy", "weights", "serve", str(weights), "--port=0", f"--token-file={token}"])
        hand.wait_for(lambda: "weights.url" in server.said, "the weights to be served")
        url = server.said.split("'")[1]
        hand.start("scorers")
        producer = hand.start("producers", f"--set=weights.url={url}", f"--set=weights.token_file={token}")
        refused = hand.start("learner", f"--set=weights.url={url}", f"--set=weights.token_file={token}")
        assert refused.process.wait(100) != 0
        assert "give the learner weights.dir" in refused.last_line
        assert hand.start("learner").process.wait(150) == 0, hand.all_said()
        assert "passes over a weight version" not in producer.said
        assert len(list(weights.glob("term*/delta.safetensors"))) > len(list(weights.glob("term*/model.safetensors"))) > 1
    assert example.result["ledger"]["applied"] == 8 * example.settings["learner.batch_size"]
    assert len(list((example.directory / "weights-cache").glob("of-*/term*/model.safetensors"))) >= 1, "rebuilt there"
    audit = example.go("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
