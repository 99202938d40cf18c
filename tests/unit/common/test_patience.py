"""Waits for what only somebody outside can mend, and calls on a store that never answers."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from pathlib import Path

import pytest

from common.errors import BusFull, StoreAway
from common.messages import Version
from common.patience import until_mended
from common.pulse import Pulse
from common.weights.directory import DirectoryStore
from common.weights.patient_thread import PatientThread


async def test_what_is_waited_for_is_in_the_heartbeat_until_it_is_mended() -> None:
    pulse, mended = Pulse("producer"), asyncio.Event()

    async def call() -> int:
        if not mended.is_set():
            raise BusFull("no memory left: raise it")
        return 7

    waiting = asyncio.create_task(until_mended(pulse, "server memory", call, BusFull))
    await asyncio.sleep(0.05)
    with pulse.waiting("tickets"):
        report = pulse.report()
    assert (report.state, report.gauges["obstacle"]) == ("waits for server memory", "no memory left: raise it")
    mended.set()
    assert await asyncio.wait_for(waiting, 60) == 7
    report = pulse.report()
    assert "obstacle" not in report.gauges
    assert report.waiting["server memory"] > 0


async def test_other_errors_come_out_at_once() -> None:
    async def call() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        await until_mended(Pulse(), "disk", call, BusFull)


class Stalled(DirectoryStore):
    """Its file system answers when `mended` is set."""

    def __init__(self, root: Path, deadline_s: float) -> None:
        super().__init__(root, deadline_s=deadline_s)
        self.mended = threading.Event()
        self.begun = 0

    def _versions(self) -> list[Version]:
        self.begun += 1
        self.mended.wait()
        return super()._versions()


async def test_a_store_that_never_answers_is_named_in_time_and_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    store = Stalled(tmp_path, 0.2)
    for _ in range(2):
        begin = time.monotonic()
        with pytest.raises(StoreAway, match=r"has not answered for 0\.2 s.*weights\.deadline_s"):
            await store.versions()
        assert time.monotonic() - begin < 30
    assert store.begun == 1, "no second call beside one that hangs"
    store.mended.set()
    assert await store.versions() == []


def test_a_store_that_never_answers_keeps_no_process_from_ending(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import asyncio, sys, threading; from common.weights.patient_thread import PatientThread\n"
        "asyncio.run(PatientThread('/mnt', 0.1).run(threading.Event().wait))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the weight store /mnt has not answered" in done.stderr


async def test_calls_on_a_store_share_a_thread_which_ends_when_none_comes_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.weights.patient_thread._IDLE_S", 0.05)
    calls = PatientThread("/mnt", 60.0)
    for _ in range(3):
        thread = await calls.run(threading.current_thread)
        await asyncio.to_thread(thread.join, 60.0)
        assert not thread.is_alive(), "with nothing to do it ends"
    monkeypatch.setattr("common.weights.patient_thread._IDLE_S", 60.0)
    assert len({await calls.run(threading.get_ident) for _ in range(20)}) == 1


class Weights:
    """Something that is a weak reference's business."""


async def test_what_a_call_on_a_store_was_about_is_not_kept_behind_it() -> None:
    calls, weights = PatientThread("/mnt", 60.0), Weights()
    kept = weakref.ref(weights)
    await calls.run(bool, weights)
    del weights
    async with asyncio.timeout(60):
        while kept() is not None:  # the thread lets go a moment after it has answered
            gc.collect()
            await asyncio.sleep(0.01)
