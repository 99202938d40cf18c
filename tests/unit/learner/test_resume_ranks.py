"""A run goes on with another number of data-parallel processes than its checkpoint was written by, as if nothing had changed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from learner_fakes import record_from

from common.codec import encode

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 1e-6
"""Of losses and weights: two ranks add up the same float32 gradients in another order; lost moments would change weights by 1e-4."""

PROGRAM = """
import json, os, sys
from pathlib import Path
import numpy as np
from common.codec import decode
from common.config import parse_config
from common.pulse import Pulse
from learner.batch import samples_of, scored_of
from learner.ranks import build_trainer, follow

values, records, before, after = json.loads(sys.argv[1]), sys.argv[2].split(), sys.argv[3], Path(sys.argv[4])
config = parse_config(values)
if int(os.environ.get("RANK", "0")):
    follow(config)
else:
    trainer = build_trainer(config, Pulse())
    if before:
        trainer.load(Path(before))
    losses = []
    for path in records:
        record = decode(Path(path).read_bytes())
        losses.append(trainer.step(record, samples_of(record, scored_of(record), 9)[0], 1e-3 / record.step).loss)
    after.mkdir()
    trainer.save(after)
    np.savez(after.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in trainer.export().items()})
    trainer.close()
    print(json.dumps(losses))
"""


class Runs:
    """Trains stretches of one run, each in processes of its own."""

    def __init__(self, root):
        transformers = pytest.importorskip("transformers")
        config = transformers.Qwen3Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
        transformers.Qwen3ForCausalLM(config).save_pretrained(root / "student")
        self.root = root
        self.records = [root / f"{step}.rec" for step in range(1, 7)]
        for step, path in enumerate(self.records, 1):
            path.write_bytes(encode(record_from(1, step, range(5 * step - 5, 5 * step), spans=((1, 0, 2 + step),))))

    def train(self, name, first, last, *, ranks=1, before=""):
        """Losses of steps first … last; leaves the checkpoint `name`."""
        values = {
            "run": {"name": "r", "dir": str(self.root)},
            "model": {"student": str(self.root / "student")},
            "teachers": {"t": {"path": "t", "top_k": 0}},
            "data": {"prompts": "p"},
            "loss": {"kind": "sampled_reverse_kl", "ratio_low": 1e-6, "ratio_high": 1e6},
            "evaluation": {"prompts": 0},
            "learner": {"ranks": ranks},
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if ranks > 1 else {}
        records = " ".join(map(str, self.records[first - 1 : last]))
        arguments = [json.dumps(values), records, str(self.root / before) if before else "", str(self.root / name)]
        started = [self._start(arguments, group | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {})) for rank in range(ranks)]
        said = [process.communicate(timeout=100) for process in started]
        assert [process.returncode for process in started] == [0] * ranks, said
        return json.loads(said[0][0].strip().splitlines()[-1])

    def _start(self, arguments, environment):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def weights(self, name):
        with np.load(self.root / f"{name}.npz") as loaded:
            return dict(loaded)


@pytest.mark.slow
def test_one_two_and_again_one_process_go_on_as_one_would(tmp_path):
    runs = Runs(tmp_path)
    whole = runs.train("whole", 1, 6)
    parts = runs.train("one", 1, 2)
    parts += runs.train("two", 3, 4, ranks=2, before="one")
    parts += runs.train("again", 5, 6, before="two")
    assert parts == pytest.approx(whole, abs=TOLERANCE)
    assert len(set(whole)) == 6, "every step changes the loss"
    expected, found = runs.weights("whole"), runs.weights("again")
    worst = max(float(np.abs(expected[name] - found[name]).max()) for name in expected)
    assert worst <= TOLERANCE
    assert any(np.any(found[name] != runs.weights("two")[name]) for name in found)
