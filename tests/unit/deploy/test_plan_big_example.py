"""The big example's layouts cannot run here; a plan with its assumed rates agrees with how many teachers they have."""

from pathlib import Path

import pytest

from common.config import load_config
from deploy.plan.rates import rates_from
from deploy.plan.simulate import Layout, setting_of, simulate

HERE = Path(__file__).resolve().parents[3] / "examples/qwen3-8b-math"


@pytest.mark.parametrize(("name", "layout"), [("one-machine.toml", Layout(2, 1)), ("two-machines.toml", Layout(4, 2))])
def test_the_teachers_of_a_layout_are_enough(name: str, layout: Layout) -> None:
    config = load_config(HERE / name, ["learner.steps=24"])
    setting = setting_of(config, rates_from({}, HERE / "rates.toml", ()), version_bytes=1 << 34, seed=1)
    assert setting.now == layout
    out, more = simulate(setting, layout), simulate(setting, Layout(layout.producers, layout.scorers + 1))
    assert out.scorer_busy < 0.8
    assert out.samples_per_s > 0.95 * more.samples_per_s
    assert max(out.staleness) <= config.learner.max_staleness
