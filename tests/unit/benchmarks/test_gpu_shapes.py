from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu.shapes import SHAPES, draw_samples, write_model


def test_the_counted_weights_are_those_of_the_model(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    model = AutoModelForCausalLM.from_pretrained(write_model(shape, tmp_path, torch.device("cpu")))
    matrices = [module.weight.numel() for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    assert shape.body == sum(matrices)
    assert shape.head == model.lm_head.weight.numel()


def test_a_forward_pass_counts_the_head_on_the_response_alone() -> None:
    shape = SHAPES["tiny"]
    with_response, without = shape.forward_flops(10, 5), shape.forward_flops(15, 0)
    assert with_response - without == pytest.approx(2 * shape.head * 5)


def test_samples_are_the_same_for_the_same_seed() -> None:
    first, second = draw_samples(3, 100, 20, 30), draw_samples(3, 100, 20, 30)
    assert [sample.response_ids.tolist() for sample in first] == [sample.response_ids.tolist() for sample in second]
    assert all(15 <= len(sample.prompt_ids) <= 25 for sample in first)
