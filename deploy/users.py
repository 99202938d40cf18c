"""`reflux acl`: the users of a run's roles as a Redis ACL file, and the passwords that do not exist yet.

Guarantees: passwords are printed as SHA-256 only; a new one goes to the file that the role itself will read, readable by its owner alone;
one that exists is never changed.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from common.bus.acl import ROLES, Role, acl_lines, user_of
from common.bus.login import login_of, password_path
from common.config import RunConfig
from common.errors import ConfigError


def acl_file(config: RunConfig) -> tuple[list[str], list[Path]]:
    """The lines, and the password files that were made for them. Raises ConfigError."""
    template = config.bus.password_file or config.bus.password_env
    if "{role}" not in template and "{ROLE}" not in template:
        raise ConfigError(
            'each role needs a password of its own: set bus.password_file = "secrets/{run}-{role}" (reflux acl makes the files), '
            'or bus.password_env = "REFLUX_{ROLE}_PASSWORD"'
        )
    made = [path for role in ROLES if config.bus.password_file and (path := _made(config, role))]
    logins = {role: login_of(config.bus, config.run.name, role) for role in ROLES}
    if logins["learner"].user != user_of(config.run.name, "learner"):
        raise ConfigError(f'bus.user = {config.bus.user!r} is no user of these: leave it out, or set it to "{{run}}-{{role}}"')
    lines = acl_lines(config.run.name, {role: login.password for role, login in logins.items()})
    return ["user default off", *lines], made


def _made(config: RunConfig, role: Role) -> Path | None:
    path = password_path(config.bus, config.run.name, role)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    except FileExistsError:
        return None
    except OSError as error:
        raise ConfigError(f"bus.password_file: cannot write {path} ({error.strerror}): name a directory you can write") from None
    return path
