"""Several processes over gloo train as one does, however the model and the batch are divided over them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import rank_program
import torch
from megatron_cases import VOCABULARY, MakeStudent, MakeTrainer, samples_of, squared_distance
from safetensors.torch import load_file

ROOT = Path(__file__).parents[4]


def launch(student: Path, directory: Path, *begin: Path, ranks: int, **layout: Any) -> list[dict]:
    """Run the ranks as processes of their own and return what each wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory.mkdir()
    outs = [directory / f"rank{rank}.json" for rank in range(ranks)]
    processes = []
    for rank, out in enumerate(outs):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        paths = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
        environment = os.environ | {name: str(value) for name, value in place.items()} | paths
        command = [sys.executable, rank_program.__file__, student, out, json.dumps(layout), directory / "state", *begin]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait(250) for process in processes] == [0] * ranks
    return [json.loads(out.read_text()) for out in outs]


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-4)  # a step of Adam near a gradient of 0 is up to its rate


def contents(state: Path) -> dict[str, bytes]:
    """What every rank wrote, and what they have in common."""
    files = [*state.glob("*.distcp"), state / "common.pt", state / "metadata.json"]
    return {path.name: path.read_bytes() for path in files}


LORA = {"lora_rank": 3, "lora_alpha": 6.0, "lora_targets": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]}
ADAPTERS = [
    (2, {}, {"tied": False}),
    (2, {"tensor_parallel": 2, "sequence_parallel": True}, {"family": "qwen2"}),
    (2, {"pipeline_parallel": 2, "recompute": True}, {"layers": 3}),
    (2, {"context_parallel": 2}, {}),
    (4, {"tensor_parallel": 2, "pipeline_parallel": 2}, {"layers": 3, "tied": False}),
    (4, {"tensor_parallel": 2}, {}),
]
TWO = [
    ({}, {}),
    ({"tensor_parallel": 2}, {"vocabulary": VOCABULARY + 1}),
    ({"tensor_parallel": 2, "sequence_parallel": True}, {"tied": False}),
    ({"pipeline_parallel": 2}, {"layers": 3, "vocabulary": VOCABULARY + 1}),
    ({"tensor_parallel": 2, "sequence_parallel": True}, {"family": "qwen3_moe"}),
    ({"expert_parallel": 2}, {"family": "qwen3_moe", "shape": {"mlp_only_layers": [0]}}),
    ({"context_parallel": 2}, {}),
]
FOUR = [
    ({"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True}, {"family": "qwen3_moe", "layers": 3}),
    ({"tensor_parallel": 2}, {}),
    ({"tensor_parallel": 2, "pipeline_parallel": 2}, {"layers": 3}),
    ({"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True}, {"tied": False}),
    ({"pipeline_parallel": 2}, {"tied": False}),
    ({"pipeline_parallel": 4}, {"layers": 5}),
    ({"expert_parallel": 2}, {"family": "qwen3_moe", "tied": False}),
    ({"expert_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True}, {"family": "qwen3_moe"}),
    ({"context_parallel": 2}, {"tied": False}),
    ({"context_parallel": 2, "tensor_parallel": 2}, {}),
    ({"context_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True}, {"tied": False}),
    ({"context_parallel": 2, "pipeline_parallel": 2}, {"layers": 3}),
    ({"context_parallel": 4}, {"family": "llama"}),
    ({"context_parallel": 2, "expert_parallel": 4}, {"family": "qwen3_moe", "shape": {"num_experts": 8}}),
    ({"expert_parallel": 2, "pipeline_parallel": 2}, {"family": "qwen3_moe", "layers": 3}),
    ({"expert_parallel": 2, "pipeline_parallel": 2}, {"family": "qwen3_moe", "layers": 3, "shape": {"mlp_only_layers": [0, 1]}}),
    ({"context_parallel": 2, "expert_parallel": 2, "pipeline_parallel": 2}, {"family": "qwen3_moe", "layers": 3}),
    ({"context_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True}, {"family": "qwen3_moe"}),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("ranks", "layout", "shape"),
    [(2, *case) for case in TWO]
    + [(2, {"tensor_parallel": 2} | LORA, {"vocabulary": VOCABULARY + 1})]
    + [pytest.param(4, *case, marks=pytest.mark.slow) for case in FOUR]
    + [pytest.param(ranks, layout | LORA, shape, marks=pytest.mark.slow) for ranks, layout, shape in ADAPTERS],
    ids=str,
)
def test_ranks_find_the_losses_and_weights_of_one(
    ranks: int, layout: dict[str, Any], shape: dict[str, object], tmp_path: Path, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student = make_student(**{"family": "qwen3"} | shape)
    first, *others = launch(student, tmp_path / "ranks", ranks=ranks, **layout)
    trained = {key: value for key, value in layout.items() if key.startswith("lora")}
    trainer = make_trainer(student, **trained)
    alone = [trainer.step(samples_of(6, seed=step), squared_distance, rank_program.LEARNING_RATE) for step in range(rank_program.STEPS)]
    for ours, theirs in zip(alone, first["figures"], strict=True):
        figures = [ours.loss, ours.grad_norm, ours.metrics["kl"], ours.kl_by_teacher["teacher"], ours.tokens]
        assert theirs == pytest.approx(figures, rel=1e-5)
    assert first["refusal"] == f"the loss of step {rank_program.STEPS} is nan: resume from the last checkpoint with a lower rate"
    assert all(other == first | {"exported": 0} for other in others)
    assert_same(load_file(tmp_path / "ranks" / "rank0.safetensors"), trainer.export(torch.float32))

    assert contents(tmp_path / "ranks" / "beside") == contents(tmp_path / "ranks" / "state"), "a later step has altered what was copied"
    continued = make_trainer(student, **trained)  # one rank goes on where they stopped
    continued.load(tmp_path / "ranks" / "state")
    stats = continued.step(samples_of(6, seed=rank_program.SAVED), squared_distance, rank_program.LEARNING_RATE)
    assert stats.step == rank_program.STEPS
    assert stats.loss == pytest.approx(alone[rank_program.SAVED].loss, rel=1e-5)
    assert stats.grad_norm == pytest.approx(alone[rank_program.SAVED].grad_norm, rel=1e-4)


DENSE_LAST = {"num_experts": 8, "mlp_only_layers": [2]}  # of two stages the second has no experts
WAYS = [  # of a checkpoint: from one process through several in each of these layouts, and back to one
    (2, {}, ({"pipeline_parallel": 2}, {"tensor_parallel": 2}, {"pipeline_parallel": 2}, {})),
    (2, {}, ({"tensor_parallel": 2}, {}, {"tensor_parallel": 2})),
    (2, {"family": "qwen3_moe"}, ({"expert_parallel": 2}, {}, {"expert_parallel": 2})),
    (4, {"family": "qwen3_moe", "shape": DENSE_LAST}, ({"expert_parallel": 2, "pipeline_parallel": 2}, {"expert_parallel": 4})),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "shape", "way"), WAYS, ids=str)
def test_a_checkpoint_goes_from_layout_to_layout(
    ranks: int,
    shape: dict[str, object],
    way: tuple[dict[str, int], ...],
    tmp_path: Path,
    make_student: MakeStudent,
    make_trainer: MakeTrainer,
) -> None:
    student, state = make_student(**{"family": "qwen3", "layers": 3} | shape), tmp_path / "alone"
    trainer = make_trainer(student)
    for step in range(rank_program.STEPS):
        if step == rank_program.SAVED:
            trainer.save(state)
        stats = trainer.step(samples_of(6, seed=step), squared_distance, rank_program.LEARNING_RATE)
    weights = trainer.export(torch.float32)
    for place, layout in enumerate(way):
        found, *_ = launch(student, tmp_path / str(place), state, ranks=ranks, **layout)
        (loss, grad_norm, *_), state = *found["figures"], tmp_path / str(place) / "state"
        assert [loss, grad_norm] == pytest.approx([stats.loss, stats.grad_norm], rel=1e-5), layout
        assert_same(load_file(tmp_path / str(place) / "rank0.safetensors"), weights)  # so the moments came along
    continued = make_trainer(student)
    continued.load(state)
    again = continued.step(samples_of(6, seed=rank_program.SAVED), squared_distance, rank_program.LEARNING_RATE)
    assert [again.loss, again.grad_norm] == pytest.approx([stats.loss, stats.grad_norm], rel=1e-5)
    assert_same(continued.export(torch.float32), weights)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("layout", "family"), [({"context_parallel": 2}, "qwen3"), ({"expert_parallel": 2}, "qwen3_moe")], ids=str)
def test_the_same_layout_finds_the_same_figures_again_to_the_last_bit(
    layout: dict[str, int], family: str, tmp_path: Path, make_student: MakeStudent
) -> None:
    student = make_student(family)
    once, again = (launch(student, tmp_path / name, ranks=2, **layout)[0] for name in ("once", "again"))
    assert once == again
    weights, same = (load_file(tmp_path / name / "rank0.safetensors") for name in ("once", "again"))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
