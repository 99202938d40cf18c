"""Two processes over gloo train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import rank_program
import torch
from megatron_cases import VOCABULARY, MakeStudent, MakeTrainer, samples_of, squared_distance

ROOT = Path(__file__).parents[4]


def launch(student: Path, directory: Path, *, ranks: int, tensor_parallel: int = 1) -> list[dict]:
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
        command = [sys.executable, rank_program.__file__, student, out, str(tensor_parallel), directory / "state"]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait(250) for process in processes] == [0] * ranks
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("tensor_parallel", "vocabulary"), [(1, VOCABULARY), (2, VOCABULARY + 1)])
def test_two_processes_find_the_losses_of_one(
    tensor_parallel: int, vocabulary: int, tmp_path: Path, make_student: MakeStudent, make_trainer: MakeTrainer
) -> None:
    student = make_student("qwen3", tied=True, vocabulary=vocabulary)
    first, second = launch(student, tmp_path / "two", ranks=2, tensor_parallel=tensor_parallel)
    trainer = make_trainer(student)
    alone = [trainer.step(samples_of(6, seed=step), squared_distance, 1e-2) for step in range(rank_program.STEPS)]
    figures = [[s.loss, s.grad_norm, s.metrics["kl"], s.kl_by_teacher["teacher"], s.tokens] for s in alone]
    for ours, theirs, others in zip(figures, first["figures"], second["figures"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
        assert theirs == others
    assert (first["exported"], second["exported"]) == (24, 0)
    exported = trainer.export(torch.float32)
    assert len(exported["model.embed_tokens.weight"]) == vocabulary
    assert first["checksum"] == pytest.approx(sum(float(tensor.double().abs().sum()) for tensor in exported.values()), rel=1e-5)

    continued = make_trainer(student)  # one rank goes on where two stopped
    continued.load(tmp_path / "two" / "state")
    stats = continued.step(samples_of(6, seed=rank_program.SAVED), squared_distance, 1e-2)
    assert stats.step == rank_program.STEPS
    assert stats.loss == pytest.approx(alone[rank_program.SAVED].loss, rel=1e-5)
    assert stats.grad_norm == pytest.approx(alone[rank_program.SAVED].grad_norm, rel=1e-4)
