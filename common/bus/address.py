"""Where the embedded server of a run listens: `bus.json` in the run's directory, readable by its owner only."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

ADDRESS_FILE = "bus.json"


@dataclass(frozen=True, slots=True)
class Address:
    """A loopback port, its password, and the server's process."""

    port: int
    password: str
    pid: int

    @property
    def url(self) -> str:
        """For bus.url."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


def write_address(path: Path, address: Address) -> None:
    """Replaces the file at once, so that a reader sees the old address or the new one."""
    document = {"url": address.url, "pid": address.pid, "port": address.port, "password": address.password}
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(document, out)
    temporary.replace(path)


def read_address(path: Path) -> Address | None:
    """None: there is none, or it cannot be read."""
    try:
        document = json.loads(path.read_text())
        return Address(int(document["port"]), str(document["password"]), int(document["pid"]))
    except (OSError, ValueError, KeyError):
        return None
