"""Where the embedded server of a run listens: `bus.json` in the run's directory, readable by its owner only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.bus.acl import ROLES, Role, user_of

ADDRESS_FILE = "bus.json"


@dataclass(frozen=True, slots=True)
class Address:
    """A loopback port, the password of its administrator, the server's process, and the passwords of the users, by role."""

    port: int
    password: str = field(repr=False)
    pid: int
    users: Mapping[Role, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """The administrator's, who may do everything."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def url_of(self, run: str, role: Role) -> str:
        """A role's own; the administrator's where the server has no users."""
        password = self.users.get(role)
        return f"redis://{user_of(run, role)}:{password}@127.0.0.1:{self.port}/0" if password else self.url


def write_address(path: Path, address: Address) -> None:
    """Replaces the file at once, so that a reader sees the old address or the new one."""
    document = {"url": address.url, "pid": address.pid, "port": address.port, "password": address.password, "users": dict(address.users)}
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(document, out)
    temporary.replace(path)


def read_address(path: Path) -> Address | None:
    """None: there is none, or it cannot be read."""
    try:
        document = json.loads(path.read_text())
        users = {role: str(document["users"][role]) for role in ROLES if role in document.get("users", {})}
        return Address(int(document["port"]), str(document["password"]), int(document["pid"]), users)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
