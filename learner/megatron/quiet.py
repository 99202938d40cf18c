"""Warnings that are meant for Megatron's authors, kept from its users.

Guarantee: inside `quiet()` only three kinds are dropped: that Transformer Engine or Apex are not installed, that torch will
rename a function that Megatron calls, and Megatron's own deprecations of defaults.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Use it around imports of, and calls into, Megatron; also as a decorator."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex)", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*deprecat", category=UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
