"""Which layers a stage of the pipeline holds."""

from __future__ import annotations

import pytest
import torch
from megatron_cases import MakeStudent, settings_for

from common.errors import ConfigError
from learner.megatron.architecture import read_architecture
from learner.megatron.model import build_student
from learner.megatron.stages import experts_of, megatron_layout, stages


@pytest.mark.parametrize(("layers", "count"), [(1, 1), (4, 2), (7, 3), (5, 5), (28, 8)])
def test_every_layer_is_in_one_stage_and_sizes_differ_by_one_at_most(layers: int, count: int) -> None:
    found = stages(layers, count)
    assert [layer for stage in found for layer in stage.layers] == list(range(layers))
    assert [stage.first for stage in found] == [True] + [False] * (count - 1)
    assert [stage.last for stage in found] == [False] * (count - 1) + [True]
    sizes = [len(stage.layers) for stage in found]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_megatron_is_told_the_same_division() -> None:
    assert megatron_layout(3, 2) == [["embedding", "decoder", "decoder"], ["decoder", "loss"]]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 layers are too few for 3 pipeline stages: set learner\.pipeline_parallel to 2 or less"):
        stages(2, 3)


def test_every_expert_is_on_one_rank_and_no_rank_has_more_than_another() -> None:
    shares = [experts_of(6, rank, 3) for rank in range(3)]
    assert [expert for share in shares for expert in share] == list(range(6))
    assert {len(share) for share in shares} == {2}


def test_a_student_without_experts_has_none_to_divide(make_student: MakeStudent) -> None:
    settings = settings_for(make_student(), expert_parallel=2)
    with pytest.raises(ConfigError, match=r"a qwen3 student has no experts to divide over ranks: set learner\.expert_parallel = 1"):
        build_student(read_architecture(settings.student), settings, dtype=torch.float32)


def test_experts_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"6 experts cannot be divided over 4 ranks: set learner\.expert_parallel to a divisor of 6"):
        experts_of(6, 0, 4)
