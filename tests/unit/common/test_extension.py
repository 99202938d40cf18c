from __future__ import annotations

import math

import pytest

from common.errors import ConfigError
from common.extension import load_function


def test_a_reference_names_a_function() -> None:
    assert load_function("python:math:sqrt", "loss.kind") is math.sqrt


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("python:math", "loss.kind = 'python:math' is incomplete: write python:module:function"),
        ("python::sqrt", "is incomplete"),
        ("python:math:", "is incomplete"),
        ("python:mathh:sqrt", "there is no module mathh: install it or add its directory to PYTHONPATH"),
        ("python:math:root", "module math has no function root"),
        ("python:math:pi", "module math has no function pi"),
    ],
)
def test_a_wrong_reference_says_what_to_write(reference: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_function(reference, "loss.kind")
