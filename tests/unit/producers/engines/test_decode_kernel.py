"""The compiled decode step against the one of batched products that other devices and dtypes take."""

from pathlib import Path

import pytest
import torch

from producers.engines.torch.fused import FusedForward
from producers.engines.torch.loader import load_student

LENGTHS = torch.tensor([7, 2, 5, 3])
STEPS = 6


@torch.inference_mode()
def logits_of(forward: FusedForward, ids: torch.Tensor) -> list[torch.Tensor]:
    """After the prompts and after every step; row 1 leaves early, row 3 takes its place."""
    forward.cache.reserve(int(LENGTHS.max()) + STEPS)
    rows, at = torch.arange(4), LENGTHS.clone()
    found = [forward.prefill(ids[:, : LENGTHS.max()], LENGTHS, rows)]
    for step in range(STEPS):
        if step == 3:
            forward.cache.release(torch.tensor([1]))
            forward.cache.move(torch.tensor([3]), torch.tensor([1]), int(at.max()))
            ids, at = ids[[0, 3, 2]], at[[0, 3, 2]]
        found.append(forward.decode(ids[torch.arange(len(ids)), at], int(at.max()) + 1))
        at += 1
    return found


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "mistral"])
def test_the_compiled_step_has_the_logits_of_batched_products(students: dict[str, Path], name: str) -> None:
    ids = torch.randint(61, (4, 20), generator=torch.Generator().manual_seed(3))
    compiled, batched = (
        logits_of(FusedForward(load_student(students[name], dtype=torch.float32, device=torch.device("cpu")), slots=5, compiled=each), ids)
        for each in (True, False)
    )
    for one, other in zip(compiled, batched, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_weights_that_are_no_numbers_are_not_hidden_by_the_compiled_step(students: dict[str, Path]) -> None:
    student = load_student(students["qwen3"], dtype=torch.float32, device=torch.device("cpu"))
    student.model.model.layers[0].self_attn.q_norm.weight.fill_(torch.nan)
    found = logits_of(FusedForward(student, slots=5, compiled=True), torch.zeros(4, 20, dtype=torch.int64))
    assert all(torch.isnan(step).all() for step in found[1:])
