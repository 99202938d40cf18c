"""A rank that waits for rank 0: as long as it lives, and no longer."""

from __future__ import annotations

import json
import signal
import time

import pytest
from test_ranks import ranks_of, values_of

from common.service import EXIT_FAILED

TIMEOUT_S = 20
WAITING = """
import json, os, sys
from common.config import parse_config
from common.pulse import Pulse

if int(os.environ["RANK"]):
    from learner.__main__ import _follow
    sys.exit(_follow(parse_config(json.loads(sys.argv[1]))))
from learner.ranks import build_trainer
trainer = build_trainer(parse_config(json.loads(sys.argv[1])), Pulse())
for line in sys.stdin:
    if line == "export\\n":
        print(len(trainer.export()), flush=True)
    else:
        break
trainer.close()
"""


@pytest.fixture
def two(tmp_path):
    """Rank 0, which does what its standard input says, and the rank that waits for it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "student")
    values = values_of(tmp_path) | {"learner": {"ranks": 2, "rank_timeout_s": TIMEOUT_S}}
    ranks = ranks_of(2, values, tmp_path, WAITING)
    yield ranks
    for rank in ranks:
        with rank:  # closes its pipes
            rank.kill()


def exported(rank):
    rank.stdin.write("export\n")
    rank.stdin.flush()
    return json.loads(rank.stdout.readline())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_waits_as_long_as_rank_0_has_nothing_to_do_but_not_for_one_that_stands_still(two):
    first, second = two
    assert exported(first) > 0
    time.sleep(2.5 * TIMEOUT_S)
    assert second.poll() is None, second.stderr.read()
    assert exported(first) > 0
    first.send_signal(signal.SIGSTOP)
    _, said = second.communicate(timeout=200)
    assert second.returncode == EXIT_FAILED
    assert said.splitlines()[-1].startswith(
        "reflux learner, rank 1: no sign of rank 0 for 20 s (learner.rank_timeout_s): its machine is gone"
    )


@pytest.mark.slow
def test_a_rank_that_is_sent_home_after_a_wait_says_nothing(two):
    first, second = two
    assert exported(first) > 0
    _, told = first.communicate("home\n", timeout=200)
    _, said = second.communicate(timeout=200)
    assert (first.returncode, second.returncode) == (0, 0), told + said
    assert "no sign" not in said
