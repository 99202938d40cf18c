"""A real model with real checkpoints, killed in mid-run: what is damaged on the disk is named and passed over, what is missing is sampled
again, and the same records give the same weights, bit for bit, whether they are trained or replayed.

The server always comes back empty.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from learner_fakes import FakeTrainer
from learner_world import World

from common.errors import UserError
from common.pulse import Pulse
from learner import checkpoint

KILLED_AT, EVERY = 8, 3
WEIGHTS = {}
"""What was trained so far -> what the weights became, over all lives of the module."""


class RealTrainer(FakeTrainer):
    """Megatron's trainer. `same` counts the steps of this life that were taken before, in another one."""

    same = 0

    def __init__(self, config):
        super().__init__()
        from learner.ranks import build_trainer

        self.inner, self.chain = build_trainer(config, Pulse()), ""

    def step(self, record, samples, lr):
        super().step(record, samples, lr)
        stats = self.inner.step(record, samples, lr)
        self.chain = hashlib.sha256(f"{self.chain} {record.digest} {lr}".encode()).hexdigest()
        total = hashlib.sha256()
        for _, tensor in sorted(self.inner.export().items()):
            total.update(tensor.contiguous().numpy().tobytes())
        found = total.hexdigest()
        RealTrainer.same += self.chain in WEIGHTS
        assert WEIGHTS.setdefault(self.chain, found) == found, f"step {record.step} gives other weights than it gave before"
        return stats

    def export(self):
        return self.inner.export()

    def begin_save(self, directory):
        (directory / "megatron").mkdir()
        (directory / "chain.json").write_text(json.dumps(self.chain))
        inner, own = self.inner.begin_save(directory / "megatron"), super().begin_save(directory)
        return lambda: (inner(), own())

    def load(self, directory):
        self.inner.load(directory / "megatron")
        super().load(directory)
        self.chain = json.loads((directory / "chain.json").read_text())

    def close(self):
        super().close()
        self.inner.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds the student."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("resume")
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(root / "model")
    return root


def new_world(root):
    run = World(root, steps=10, checkpoint_every=EVERY, keep_checkpoints=2, loss={"ratio_low": 1e-6, "ratio_high": 1e6})
    shutil.copytree(root / "model", root / "student", dirs_exist_ok=True)
    return run


@pytest.fixture
async def killed(root):
    """A run killed before step 8 was settled: checkpoints of steps 3 and 6, records to step 8."""
    run = new_world(root)
    shutil.rmtree(run.directory.root, ignore_errors=True)
    if not (root / "kept").exists():
        async with run.workers():
            await run.crash(plan=("settle", "before", KILLED_AT), trainer=RealTrainer(run.config))
        shutil.copytree(run.directory.root, root / "kept")
        return new_world(root)
    shutil.copytree(root / "kept", run.directory.root)
    return run


async def finish(run):
    """Another life, which must see it through; the audit is green and every sample was trained once."""
    RealTrainer.same = 0
    async with run.workers():
        await run.life(trainer=RealTrainer(run.config))
    result = await run.check()
    assert RealTrainer.same >= result["replayed_steps"] - 2, "but for the last records, which the kill may have left untrained"
    return result


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tear(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


async def test_replay_gives_the_very_weights_and_is_counted_and_timed(killed, caplog):
    caplog.set_level("INFO", "learner")
    shutil.rmtree(checkpoint.newest(killed.directory.checkpoints).directory)
    result = await finish(killed)
    assert result["replayed_steps"] == KILLED_AT - 3
    assert result["replay_s"] > 0
    assert len(set(WEIGHTS.values())) == len(WEIGHTS), "every step changes the weights"
    gauges = killed.worker.pulse.report().gauges
    assert gauges["replayed_steps"] == KILLED_AT - 3
    assert 0 < gauges["replay_s"] <= result["replay_s"], "the result counts all lives"
    told = next(record for record in caplog.records if record.msg == "resumed")
    assert (told.replayed, told.replay_s) == (KILLED_AT - 3, gauges["replay_s"])


@pytest.mark.parametrize("damage", [flip, tear, lambda path: path.unlink()], ids=["flipped", "torn", "lost"])
@pytest.mark.parametrize("name", ["model/megatron/*.distcp", "line.json", "manifest.json"])
async def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(killed, caplog, damage, name):
    newest = checkpoint.newest(killed.directory.checkpoints)
    victim = next(newest.directory.glob(name))
    damage(victim)
    result = await finish(killed)
    assert result["replayed_steps"] == KILLED_AT - 3
    (warning,) = (record for record in caplog.records if "checkpoint is damaged" in record.msg)
    assert str(newest.directory if victim.name == "manifest.json" else victim) in warning.error
    assert [path.name for path in killed.directory.checkpoints.glob("damaged*")] == ["damaged-term000001-step00000006-found-by-term000002"]


@pytest.mark.parametrize(("damage", "at"), [(flip, KILLED_AT), (tear, KILLED_AT), (flip, 7), (flip, 2)])
async def test_a_damaged_record_is_named_and_its_samples_are_sampled_again(killed, caplog, damage, at):
    (segment,) = (killed.directory.journal / "term000001").iterdir()
    begins = [where for where, _ in frames(segment)]
    content = bytearray(segment.read_bytes())
    begin, end = begins[at - 1], [*begins, len(content)][at]
    if damage is tear:
        segment.write_bytes(content[: end - 5])
    else:
        content[(begin + end) // 2] ^= 1
        segment.write_bytes(content)
    result = await finish(killed)
    assert result["replayed_steps"] == {2: 2, 7: 0, KILLED_AT: 1}[at]
    assert any(getattr(record, "segment", "") == str(segment) and record.at == begin for record in caplog.records)


def frames(segment):
    """Where each begins, and its length."""
    content, at = segment.read_bytes(), 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        yield at, length
        at += 8 + length


async def test_a_run_without_any_whole_checkpoint_does_not_begin_anew_by_itself(killed):
    for version in checkpoint.versions(killed.directory.checkpoints):
        flip(killed.directory.checkpoints / f"term{version.term:06}-step{version.step:08}" / "line.json")
    before = sorted(killed.directory.journal.rglob("*.rfx"))
    with pytest.raises(ExceptionGroup) as caught:
        await killed.life(trainer=RealTrainer(killed.config))
    (error,) = caught.value.exceptions
    assert isinstance(error, UserError)
    assert "no checkpoint in" in str(error)
    assert "line.json has another digest" in str(error)
    assert "--fresh" in str(error)
    assert sorted(killed.directory.journal.rglob("*.rfx")) == before


class RivalledTrainer(RealTrainer):
    """A learner of a higher term writes a checkpoint while this one works."""

    def step(self, record, samples, lr):
        if record.step == KILLED_AT + 1:
            self.foreign.mkdir()
        return super().step(record, samples, lr)


async def test_keep_last_k_counts_whole_ones_and_leaves_those_of_a_higher_term(killed):
    flip(checkpoint.newest(killed.directory.checkpoints).directory / "line.json")
    trainer = RivalledTrainer(killed.config)
    trainer.foreign = killed.directory.checkpoints / "term000009-step00000001"
    async with killed.workers():
        await killed.life(trainer=trainer)
    assert checkpoint.versions(killed.directory.checkpoints) == [(2, 9), (2, 10), (9, 1)]
