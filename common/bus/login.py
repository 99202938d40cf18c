"""Who a role is to the server, and how it knows the server: read when it connects, from a file or a variable of the environment.

Guarantee: a password read here is in no configuration, so nothing that shows or keeps a configuration can show or keep it. Raises
ConfigError, which names the file or the variable and never what is in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config.run import without_password
from common.config.sections import BusSection, ServiceSection
from common.errors import ConfigError

MOST_BYTES = 4096
PASSWORD_VARIABLE = "REFLUX_PASSWORD"  # noqa: S105 - the name of one
"""Of the environment: the password that belongs to an address given on the command line."""


@dataclass(frozen=True, slots=True)
class Login:
    """User and password ("" = those of the address), and the files that TLS needs."""

    user: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def options(self) -> dict[str, Any]:
        """For redis-py, where they are set (Any: its options have no common type)."""
        files = {"ssl_ca_certs": self.ca, "ssl_certfile": self.certificate, "ssl_keyfile": self.key}
        texts = {"username": self.user, "password": self.password, **{name: str(path) for name, path in files.items() if path}}
        return {name: text for name, text in texts.items() if text}


def login_of(settings: BusSection, run: str, role: str) -> Login:
    """What the configuration says of `role`."""
    for key in ("tls_ca", "tls_cert", "tls_key"):
        path: Path | None = getattr(settings, key)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"bus.{key} = {path} cannot be read: name a PEM file that this process may read")
    password = _password(settings, run, role)
    user = _filled(settings.user, run, role) if password else ""
    return Login(user, password, settings.tls_ca, settings.tls_cert, settings.tls_key)


def login_at(url: str) -> Login:
    """For an address given on the command line: the password is in the environment, since the process list shows arguments to everybody."""
    if (public := without_password(url)) != url:
        raise ConfigError(
            f"everybody on this machine can read a password on the command line: give {public} alone, and the password in the "
            f"environment's {PASSWORD_VARIABLE}"
        )
    return Login(password=os.environ.get(PASSWORD_VARIABLE, "").strip())


def password_path(settings: BusSection, run: str, role: str) -> Path:
    """The file that bus.password_file names for `role`."""
    return Path(_filled(settings.password_file, run, role))


def password_variable(settings: BusSection, run: str, role: str) -> str:
    """The variable that bus.password_env names for `role`."""
    return _filled(settings.password_env, run, role).replace("{ROLE}", role.upper())


def metrics_token(settings: ServiceSection) -> str:
    """What a scrape must bring along; "" = nothing."""
    path = settings.metrics_token_file
    return token_in(path, "service.metrics_token_file") if path else ""


def token_in(path: Path, key: str) -> str:
    """The token in a file that `key` names."""
    return _read(path, f"{key} = {path}", "the token")


def _filled(template: str, run: str, role: str) -> str:
    return template.replace("{run}", run).replace("{role}", role)


def _password(settings: BusSection, run: str, role: str) -> str:
    what = f"the password of the {role}"
    if settings.password_file:
        path = password_path(settings, run, role)
        return _read(path, f"bus.password_file = {path}", what)
    if not settings.password_env:
        return ""
    variable = password_variable(settings, run, role)
    password = os.environ.get(variable, "").strip()
    if not password:
        raise ConfigError(f"bus.password_env: the environment has no {variable}: set it to {what}")
    return password


def _read(path: Path, key: str, what: str) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_BYTES + 1)
    except UnicodeDecodeError:
        raise ConfigError(f"{key} is no text: write {what} into it") from None
    except OSError as error:
        raise ConfigError(f"{key} cannot be read ({error.strerror}): write {what} into it") from None
    if not text.strip() or len(text) > MOST_BYTES:
        raise ConfigError(f"{key} is {'empty' if not text.strip() else 'too long'}: write {what} into it, and nothing else")
    return text.strip()
