"""Where a run is shown: a table that renews itself on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live

from deploy.snapshot import Snapshot
from deploy.table import live_view, plain_line

_LINE_EVERY_S = 5.0


class Screen(Protocol):
    """What the supervisor tells."""

    def show(self, before: Snapshot, after: Snapshot) -> None:
        """The run as it is."""

    def say(self, sentence: str) -> None:
        """An event."""


class Terminal:
    """Renews a table in place; events scroll above it."""

    def __init__(self, console: Console, live: Live, name: str, steps: int) -> None:
        self._console = console
        self._live = live
        self._name = name
        self._steps = steps

    def show(self, before: Snapshot, after: Snapshot) -> None:
        """Renews the table."""
        self._live.update(live_view(self._name, self._steps, before, after), refresh=True)

    def say(self, sentence: str) -> None:
        """Above the table."""
        self._console.print(sentence, highlight=False, markup=False)


class Lines:
    """Plain text, for logs and pipes."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._next = 0.0

    def show(self, before: Snapshot, after: Snapshot) -> None:
        """At most one line in five seconds."""
        if time.monotonic() >= self._next and after.reports:
            self._next = time.monotonic() + _LINE_EVERY_S
            self.say(plain_line(self._steps, before, after))

    def say(self, sentence: str) -> None:
        """One line, however long."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def open_screen(console: Console, name: str, steps: int) -> Iterator[Screen]:
    """The screen that fits the console."""
    if not console.is_terminal:
        yield Lines(console, steps)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield Terminal(console, live, name, steps)
