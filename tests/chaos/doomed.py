"""A role's own program that dies, or stops, exactly where it is ordered to: `doomed.py DIRECTORY producers|scorers|learner --config …`.

Nothing of the product knows of it: its functions are wrapped from outside. An order is the file DIRECTORY/order, "kill POINT" or "stop
POINT"; who obeys it renames it to DIRECTORY/obeyed and sends itself the signal. DIRECTORY/clock holds seconds by which this process's wall
clock is wrong; its monotonic clock stays right.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIRECTORY = Path(sys.argv[1])
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_true_time = time.time


def reached(point: str) -> None:
    """Obeys the order for this point, if there is one."""
    order = DIRECTORY / "order"
    try:
        what, where = order.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    if where == point:
        order.replace(DIRECTORY / "obeyed")
        os.kill(os.getpid(), SIGNALS[what])


def is_ordered(point: str) -> bool:
    """Whether the order names this point."""
    try:
        return (DIRECTORY / "order").read_text().endswith(f" {point}")
    except FileNotFoundError:
        return False


def wrap(owner: Any, name: str, *, before: str = "", after: str = "", when: Callable[[Any], object] = lambda _: True) -> None:
    """`before` and `after` are points; `when` looks at the first positional argument before, at the result after."""
    original = getattr(owner, name)

    def enter(arguments: tuple[Any, ...]) -> None:
        if before and when(next(iter(arguments[1:]), True)):
            reached(before)

    def leave(result: Any) -> Any:
        if after and when(result):
            reached(after)
        return result

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        enter(args)
        return leave(original(*args, **kwargs))

    @functools.wraps(original)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        enter(args)
        return leave(await original(*args, **kwargs))

    setattr(owner, name, call_async if inspect.iscoroutinefunction(original) else call)


def wrap_bus(**points: str) -> None:
    """`method="point"`: after a call of it that brought something."""
    from common.bus.redis_bus import RedisBus

    for name, point in points.items():
        wrap(RedisBus, name, after=point, when=lambda result: result is None or result)


def doom_producer() -> None:
    from producers.service import Producer

    wrap_bus(lease="leased", hand_off="handed_off")
    wrap(Producer, "_hand_off", before="computed", when=bool)


def doom_scorer() -> None:
    from scorers.service import Scorer

    wrap_bus(lease="leased", hand_off="handed_off")
    wrap(Scorer, "_hand_off", before="computed", when=bool)


def doom_learner() -> None:
    from torch.distributed.checkpoint import filesystem
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    from common.weights.directory import DirectoryStore
    from learner.journal import Journal
    from learner.ranks import RankedTrainer

    wrap_bus(claim="claimed", lease="leased", settle="settled", publish="published", admit="admitted")
    wrap_bus(reconcile="reconciled", readmit="readmitted")
    wrap(Journal, "_append", after="journaled")
    wrap(RankedTrainer, "step", after="stepped")
    wrap(RankedTrainer, "begin_save", after="checkpoint_copied")
    wrap(FileSystemWriter, "finish", before="checkpoint_half_written")
    if rank := os.environ.get("RANK"):
        wrap(FileSystemWriter, "write_data", before=f"shard_begun_by_{rank}")
        wrap(filesystem, "_write_item", after=f"shard_torn_by_{rank}")
    wrap(DirectoryStore, "_put", after="stored")
    _tear(Journal)
    _watch_renames()
    _doom_ranks()


def _doom_ranks() -> None:
    """The ranks that this one starts obey orders too."""
    start = asyncio.create_subprocess_exec

    async def start_doomed(python: str, module: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        assert (python, module) == (sys.executable, "-m")
        return await start(python, __file__, str(DIRECTORY), *arguments, **options)

    asyncio.create_subprocess_exec = start_doomed  # type: ignore[assignment]


def _tear(journal: Any) -> None:
    """The point `torn`: half of a record is on the disk."""
    original, write = journal._write, os.write

    def half(file: int, frame: memoryview) -> int:
        os.write = write
        written = write(file, frame[: len(frame) // 2])
        os.fdatasync(file)
        reached("torn")
        return written

    @functools.wraps(original)
    def tearing(*args: Any) -> None:
        if is_ordered("torn"):
            os.write = half  # type: ignore[assignment]
        original(*args)

    journal._write = tearing


def _watch_renames() -> None:
    """The points `checkpoint_written` and `checkpoint_renamed`: before and after a finished checkpoint gets its name."""
    original = Path.replace

    def replace(path: Path, target: Any) -> Path:
        is_checkpoint = path.suffix == ".tmp" and path.parent.name == "checkpoints" and path.is_dir()
        if is_checkpoint:
            reached("checkpoint_written")
        moved = original(path, target)
        if is_checkpoint:
            reached("checkpoint_renamed")
        return moved

    Path.replace = replace  # type: ignore[method-assign]


def wrong_time() -> float:
    try:
        return _true_time() + float((DIRECTORY / "clock").read_text())
    except (FileNotFoundError, ValueError):
        return _true_time()


if __name__ == "__main__":
    module = sys.argv[2]
    time.time = wrong_time
    {"producers": doom_producer, "scorers": doom_scorer, "learner": doom_learner}[module]()
    sys.argv = sys.argv[2:]
    sys.path.pop(0)  # this directory is no part of the product
    runpy.run_module(module, run_name="__main__", alter_sys=True)
