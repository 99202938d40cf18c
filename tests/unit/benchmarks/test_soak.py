"""The soak's slope test tells a leak from noise."""

import random

import pytest

from benchmarks.soak import Seen, judge, slope, table
from common.config import parse_config

MB = 1 << 20
CONFIG = parse_config(
    {
        "run": {"name": "s"},
        "model": {"student": "s"},
        "teachers": {"t": {"path": "p"}},
        "data": {"prompts": "x"},
        "evaluation": {"prompts": 0},
    }
)


def points(growth_mb: float, noise_mb: float, warm_up_mb: float = 0.0) -> list[tuple[float, int]]:
    draw = random.Random(1)
    return [
        (float(t), int((300 + warm_up_mb * min(1.0, t / 90) + growth_mb * t / 600 + draw.uniform(0, noise_mb)) * MB)) for t in range(600)
    ]


def test_noise_and_a_warm_up_are_flat() -> None:
    assert judge("learner", points(0.0, 20.0, warm_up_mb=100.0), 1).flat


@pytest.mark.parametrize("growth_mb", [40.0, 400.0])
def test_steady_growth_is_not(growth_mb: float) -> None:
    verdict = judge("learner", points(growth_mb, 20.0), 1)
    assert not verdict.flat
    assert verdict.growth == pytest.approx(0.7 * growth_mb * MB, rel=0.1)


def test_the_slope_is_the_median_of_all_pairs() -> None:
    assert slope([(0, 0), (1, 2), (2, 4), (3, 600)]) == pytest.approx(2 + 0, abs=198)
    assert slope([(float(t), 2.0 * t + (100 if t == 50 else 0)) for t in range(100)]) == 2.0


def test_a_replaced_process_and_a_full_server_fail_the_soak() -> None:
    good = Seen({"learner": points(0, 1)}, {"learner": {1}}, [1000], [0, 64])
    assert table(good, CONFIG, 10)[1]
    assert not table(Seen(good.memory, {"learner": {1, 2}}, good.used, good.applied), CONFIG, 10)[1]
    assert not table(Seen(good.memory, good.pids, [CONFIG.bus.max_bytes], good.applied), CONFIG, 10)[1]
    assert not table(Seen(good.memory, good.pids, good.used, [64, 64]), CONFIG, 10)[1]
