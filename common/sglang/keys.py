"""API key and admin key: read when a role opens its servers, from a file or a variable of the environment; in no configuration and no log.

Raises ConfigError, which names the file or the variable and never what is in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from common.config.sections import ServersSection
from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Keys:
    """Empty = the servers ask for none. Where both are set a server takes the admin key on its control endpoints only."""

    api: str = field(default="", repr=False)
    admin: str = field(default="", repr=False)

    def header(self, *, admin: bool) -> dict[str, str]:
        """What a request carries."""
        key = (self.admin or self.api) if admin else self.api
        return {"Authorization": f"Bearer {key}"} if key else {}


def read_keys(section: ServersSection, key: str) -> Keys:
    """Of the section that stands under `key` in the configuration."""
    api = _key(section.api_key_file, section.api_key_env, f"{key}.api_key", "the servers' API key")
    return Keys(api, _key(section.admin_key_file, section.admin_key_env, f"{key}.admin_key", "the servers' admin key"))


def _key(file: Path | None, variable: str, name: str, what: str) -> str:
    if file is not None:
        try:
            text = file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{name}_file = {file} cannot be read: write {what} into it") from None
        where = f"{name}_file = {file}"
    elif variable:
        text, where = os.environ.get(variable, "").strip(), f"{name}_env: the environment's {variable}"
    else:
        return ""
    if not text or not text.isascii() or any(sign.isspace() for sign in text):
        raise ConfigError(f"{where} is empty or no key: it must be {what}, and nothing else")
    return text
