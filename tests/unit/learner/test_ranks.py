"""Several processes, with a share of the batch or of every layer each, train as one does, told what to do by rank 0 alone."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from disk_of_its_own import small_disk
from learner_fakes import record_from

from common.codec import encode
from learner.ranks import _dead

ROOT = Path(__file__).resolve().parents[3]
BATCHES = [[0, 1, 2], [3, 4, 5, 6]]

PROGRAM = """
import json, os, sys
from pathlib import Path
from common.codec import decode
from common.config import parse_config
from common.pulse import Pulse
from learner.batch import samples_of, scored_of
from learner import ranks
from learner.ranks import build_trainer, follow

config = parse_config(json.loads(sys.argv[1]))
if int(os.environ.get("RANK", "0")):
    held, ranks.scored_of = [], lambda record: (held.append(record.seqs), scored_of(record))[1]
    follow(config)
    print(json.dumps(held))
else:
    trainer = build_trainer(config, Pulse())
    losses = []
    for path in sorted(Path(sys.argv[2]).glob("*.rec")):
        record = decode(path.read_bytes())
        losses.append(trainer.step(record, samples_of(record, scored_of(record), 9)[0], 1e-3).loss)
    directory = Path(sys.argv[2]) / f"saved{os.environ.get('WORLD_SIZE', '1')}"
    directory.mkdir()
    trainer.save(directory)
    trainer.load(directory)
    losses.append(float(sum(tensor.double().sum() for tensor in trainer.export().values())))
    trainer.close()
    print(json.dumps(losses))
"""


def start(values, directory, program=PROGRAM, **ranks):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **ranks}
    command = [sys.executable, "-c", program, json.dumps(values), str(directory)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ranks_of(count, values, directory, program=PROGRAM):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(values, directory, program, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(count)]


def values_of(root):
    return {
        "run": {"name": "r", "dir": str(root)},
        "model": {"student": str(root / "student")},
        "teachers": {"t": {"path": "t", "top_k": 0}},
        "data": {"prompts": "p"},
        "loss": {"kind": "sampled_reverse_kl", "ratio_low": 1e-6, "ratio_high": 1e6},
        "evaluation": {"prompts": 0},
    }


def outcome(process):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return json.loads(out.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, {}),
        (2, {"tensor_parallel": 2}),
        (2, {"pipeline_parallel": 2}),
        (4, {"tensor_parallel": 2, "sequence_parallel": True}),
        (4, {"tensor_parallel": 2, "pipeline_parallel": 2}),
        (4, {"pipeline_parallel": 2}),
        (2, {"expert_parallel": 2}),
        (2, {"context_parallel": 2}),
        (4, {"context_parallel": 2}),
    ],
    ids=str,
)
def test_any_layout_gives_the_losses_and_weights_of_one_process(tmp_path, ranks, layout):
    transformers = pytest.importorskip("transformers")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if "expert_parallel" in layout else {}
    config = transformers.AutoConfig.for_model(
        "qwen3_moe" if experts else "qwen3",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        **experts,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "student")
    values = values_of(tmp_path)
    for step, seqs in enumerate(BATCHES, 1):
        (tmp_path / f"{step}.rec").write_bytes(encode(record_from(1, step, seqs, spans=((1, 0, 2 + step),))))
    alone = outcome(start(values, tmp_path))
    first, *others = ranks_of(ranks, values | {"learner": {"ranks": ranks, **layout}}, tmp_path)
    together = outcome(first)
    held = [outcome(other) for other in others]
    assert all(alone), "a step without a loss proves nothing"
    assert together == pytest.approx(alone, abs=1e-5)
    replicas = ranks // math.prod(layout.get(f"{kind}_parallel", 1) for kind in ("tensor", "pipeline", "context"))
    for step, seqs in enumerate(BATCHES):
        shares = {tuple(one[step]) for one in held}
        dealt = [seq for share in shares for seq in share]
        assert len(set(dealt)) == len(dealt)
        assert dealt == seqs if replicas == 1 else all(len(share) < len(seqs) for share in shares)


class Ended:
    def __init__(self, code):
        self.returncode = code


def test_a_rank_that_died_is_named_and_one_that_was_sent_home_is_not():
    assert _dead([Ended(None), Ended(0)]) == ""
    assert _dead([Ended(None), Ended(-9)]) == "learner rank 2 died with exit code -9: start the learner again, it resumes"


FULL_DISK = """
import json, os, sys
from pathlib import Path
from common.config import parse_config
from common.errors import DiskFull
from common.pulse import Pulse
from learner import checkpoint
from learner.line import Line
from learner.ranks import build_trainer, follow

config, disk = parse_config(json.loads(sys.argv[1])), Path(sys.argv[2])
if int(os.environ["RANK"]):
    follow(config)
    print(0)
else:
    trainer, said = build_trainer(config, Pulse()), []
    for begin in (trainer.begin_save, lambda directory: lambda: trainer.save(directory)):
        try:
            checkpoint.begin(disk, Line(term=1).to_json(), {}, begin)()
        except DiskFull as error:
            said.append(str(error))
    said.append(len(list(disk.iterdir())))
    (disk / "ballast").unlink()
    for term, begin in ((1, trainer.begin_save), (2, lambda directory: lambda: trainer.save(directory))):
        checkpoint.begin(disk, Line(term=term).to_json(), {}, begin)()
        trainer.load(checkpoint.newest(disk).model)
    trainer.close()
    print(json.dumps(said))
"""


@pytest.mark.slow
def test_a_full_disk_ends_no_rank_and_the_checkpoint_is_written_when_there_is_room(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "student")
    with small_disk(tmp_path / "disk") as disk:
        disk.fill()
        first, second = ranks_of(2, values_of(tmp_path) | {"learner": {"ranks": 2}}, disk.path, FULL_DISK)
        *sentences, left = outcome(first)
        assert outcome(second) == 0
    assert left == 1, "only what fills the disk"
    assert len(sentences) == 2
    assert all("the disk is full: make room" in sentence for sentence in sentences)
