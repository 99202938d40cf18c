"""Learning rates by hand."""

import pytest

from common.config.sections import OptimizerSection
from learner.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 0.775, 0.325, 0.1]),
        ("cosine", [0.5, 1.0, 0.868198, 0.231802, 0.1]),
    ],
)
def test_warm_up_then_schedule_down_to_the_minimum(schedule, expected):
    section = OptimizerSection(lr=1.0, schedule=schedule, warmup_steps=2, min_lr=0.1)
    assert [learning_rate(section, step, 10) for step in (1, 2, 4, 8, 10)] == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_the_first_step_is_already_on_the_schedule():
    assert learning_rate(OptimizerSection(lr=2.0), 1, 10) == 2.0
