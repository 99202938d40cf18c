"""One line per event: time, level, module, constant message, then the extras as key=value."""

from __future__ import annotations

import logging

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _KeyValues(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extras = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        line = super().format(record)
        return f"{line}  {extras}" if extras else line


def configure(level: int = logging.INFO) -> None:
    """Sends everything to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_KeyValues("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
