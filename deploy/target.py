"""What CONFIG-or-RUN-DIR means, and where the run's server is said to be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from common.config import RunConfig, load_config
from common.errors import ConfigError

CONFIG_FILE = "config.toml"
PRIVATE_FILE = ".config-with-password.toml"


def open_target(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a TOML file, or the resolved one of a run's directory. Raises ConfigError."""
    if not path.is_dir():
        return load_config(path, overrides)
    for file in (path / PRIVATE_FILE, path / CONFIG_FILE):
        if file.exists():
            return load_config(file, overrides)
    raise ConfigError(f"{path} is no run's directory: it has no {CONFIG_FILE}; name one below runs/, or the run's TOML")


@contextmanager
def saved_config(config: RunConfig) -> Iterator[Path]:
    """Writes the resolved configuration into the run's directory, to stay there without the password of bus.url; yields the file that the
    roles are to read: where there is a password, one that only its owner reads and that goes when the run stops."""
    values = config.model_dump(mode="json", exclude_none=True)
    public = config.public()
    (config.directory / CONFIG_FILE).write_text(tomli_w.dumps(public.model_dump(mode="json", exclude_none=True)))
    if public == config:
        yield config.directory / CONFIG_FILE
        return
    private = config.directory / PRIVATE_FILE
    private.unlink(missing_ok=True)
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(tomli_w.dumps(values))
    try:
        yield private
    finally:
        private.unlink(missing_ok=True)
