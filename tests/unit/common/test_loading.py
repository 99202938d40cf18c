"""While a process loads nothing is collected; afterwards everything new is, and only that."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from common.loading import loading


class Circle:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def many() -> list[list[int]]:
    return [[] for _ in range(100_000)]


def test_nothing_is_collected_while_it_loads() -> None:
    with loading():
        seen = weakref.ref(Circle())
        many()
        assert seen() is not None
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_comes_later_is_collected() -> None:
    with loading():
        pass
    seen = weakref.ref(Circle())
    many()
    assert seen() is None


def test_a_failure_while_loading_leaves_collection_on() -> None:
    with pytest.raises(OSError, match="no model"), loading():
        raise OSError("no model")
    assert gc.isenabled()


def test_loading_inside_loading_ends_with_the_outer_one() -> None:
    with loading():
        with loading():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
