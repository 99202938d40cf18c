"""Weight versions that `reflux weights serve` shows, read in ranges over HTTP. The learner writes to their directory.

Guarantees besides those of remote.py: the token goes to that server only; a server that sends more than was asked for is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any  # fsspec has no types

import fsspec

from common.errors import ConfigError, WeightsError
from common.weights.remote import PIECE, RemoteStore, foreign

LIST = "versions"
_MOST_LIST = 1 << 24


class HttpStore(RemoteStore):
    """A WeightStore that reads. `token` may be empty."""

    advice = "correct weights.url or weights.token_file, or start the server again"

    def __init__(self, url: str, *, token: str, deadline_s: float, cache: Path) -> None:
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        super().__init__(url, deadline_s=deadline_s, full_every=1, cache=cache)

    def _opened(self, url: str) -> tuple[Any, str]:
        return fsspec.filesystem("http", client_kwargs={"headers": self._headers}, use_listings_cache=False), url

    def _names(self) -> set[str]:
        with foreign(), self._reading(self._path(LIST), _MOST_LIST) as file:
            return set(json.loads(file.read(_MOST_LIST)))

    def _reading(self, remote: str, size: int) -> Any:
        """Nobody asks the server for the size: what it refuses, it refuses with its own words."""
        return self._fs.open(remote, "rb", block_size=PIECE, size=size)

    def _begin(self, name: str) -> Path:
        raise WeightsError(
            f"{self.place} is for reading only, so {name} cannot be written: give the learner weights.dir, or another weights.url"
        )

    def _remove(self, name: str) -> None:
        raise WeightsError(f"{self.place} is for reading only, so {name} cannot be deleted")


def token_in(path: Path | None) -> str:
    """Of weights.token_file. Raises ConfigError."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"weights.token_file = {path} cannot be read: {error}") from None
    if not token:
        raise ConfigError(f"weights.token_file = {path} is empty: write the token into it")
    return token
