"""What a process loads at its start - modules, a model - it keeps: looking for garbage in it would be a fifth of the time that takes.

Afterwards a collection begins only when there are as many new objects as a few batches have: nearly all of them go by themselves before.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_OBJECTS = 10_000


@contextmanager
def loading() -> Iterator[None]:
    """No collection while it lasts, and none looks at what came in later, the one at exit least of all."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
        if before:
            gc.enable()
