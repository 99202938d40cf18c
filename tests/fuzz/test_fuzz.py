"""A short fuzz of every decoder, always the same inputs, and everything that a long one (`make fuzz`) ever found."""

from __future__ import annotations

import random

import pytest
from decoders import DECODERS, SEEDS
from fuzz import FOUND
from mutations import mutated

INPUTS = {"codec": 12_000, "manifest": 400, "journal": 400, "config": 300, "prompts": 400, "delta": 3_000}
KEPT = sorted(path.name for path in FOUND.iterdir())


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_real_is_read(name: str) -> None:
    for data in SEEDS[name]:
        DECODERS[name](data)


@pytest.mark.parametrize("name", DECODERS)
def test_mutations_of_what_is_real_end_in_the_declared_error(name: str) -> None:
    draw = random.Random(20)
    for _ in range(INPUTS[name]):
        data = mutated(draw, SEEDS[name])
        try:
            DECODERS[name](data)
        except Exception as error:
            raise AssertionError(f"{name}({data!r})") from error


@pytest.mark.parametrize("kept", KEPT)
def test_what_was_found_once_is_not_found_again(kept: str) -> None:
    DECODERS[kept.partition("-")[0]]((FOUND / kept).read_bytes())
