"""Where versions of the student's weights lie. Only files travel here; that a version exists is an event on the bus."""

from common.config import RunConfig
from common.weights.base import RawTensor, WeightStore

__all__ = ["RawTensor", "WeightStore", "open_store"]


def open_store(config: RunConfig) -> WeightStore:
    """The run's weight store; touches no file yet. Raises ConfigError."""
    section = config.weights
    cache = section.cache or config.directory / "weights-cache"
    match section.url.partition("://")[0]:
        case "":
            from common.weights.directory import DirectoryStore

            return DirectoryStore(config.weight_directory, deadline_s=section.deadline_s, full_every=section.full_every, cache=cache)
        case "http" | "https":
            from common.weights.http import HttpStore, token_in

            return HttpStore(section.url, token=token_in(section.token_file), deadline_s=section.deadline_s, cache=cache)
        case _:
            from common.weights.remote import open_remote_store

            return open_remote_store(section.url, deadline_s=section.deadline_s, full_every=section.full_every, cache=cache)
