"""One rank of a trainer: `python rank_program.py STUDENT OUT LAYOUT STATE [BEGIN]`, LAYOUT as JSON; started by test_megatron_ranks.py."""

from __future__ import annotations

import json
import math
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from megatron_cases import samples_of, settings_for, squared_distance
from safetensors.torch import save_file

from learner.megatron import checkpoint
from learner.megatron.trainer import MegatronTrainer
from learner.training import LossInputs, LossOutput

STEPS = 4
LEARNING_RATE = 1e-3
LONE = 2  # in this step only one rank has work
SAVED = 3  # the state is saved before this step


def not_a_number(inputs: LossInputs) -> LossOutput:
    """A loss that no rank may train on."""
    return LossOutput(inputs.student_logp_R * math.nan)


def held(event: threading.Event) -> None:
    """Nothing is written until then."""
    write = checkpoint.Snapshot.write

    def wait_and_write(*arguments: Any) -> None:
        assert event.wait(60)
        write(*arguments)

    checkpoint.Snapshot.write = wait_and_write  # type: ignore[method-assign]


def main(student: Path, out: Path, layout: dict[str, int], state: Path, *begin: Path) -> None:
    """Train on this rank's share, all steps or those after the state in `begin`, and write what it found."""
    trainer = MegatronTrainer.build(settings_for(student, **layout, timeout_s=60.0))
    rank, size = trainer.data_parallel
    stats = []
    for path in begin:
        trainer.load(path)
    for step in range(trainer.steps, STEPS):
        if step == SAVED:
            trainer.save(state)
            held(trained := threading.Event())
            written = trainer.begin_save(state.with_name("beside"))
        share = samples_of(6, seed=step)[rank::size] if step != LONE else samples_of(6, seed=step) * (rank == 0)
        stats.append(trainer.step(share, squared_distance, LEARNING_RATE))
    trained.set()
    written()
    exported = trainer.export(torch.float32)
    try:
        trainer.step(share, not_a_number, LEARNING_RATE)
        refusal = ""
    except ArithmeticError as error:
        refusal = str(error)
    trainer.close()
    figures = [[s.loss, s.grad_norm, s.metrics["kl"], s.kl_by_teacher["teacher"], s.tokens] for s in stats]
    save_file(exported, out.with_suffix(".safetensors"))
    out.write_text(json.dumps({"figures": figures, "exported": len(exported), "refusal": refusal}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), *map(Path, sys.argv[4:]))
