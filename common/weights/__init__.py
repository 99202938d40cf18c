"""Where versions of the student's weights lie. Only files travel here; that a version exists is an event on the bus."""

from common.config import RunConfig
from common.weights.base import RawTensor, WeightStore

__all__ = ["RawTensor", "WeightStore", "open_store"]


def open_store(config: RunConfig) -> WeightStore:
    """The run's weight store; touches no file yet."""
    from common.weights.directory import DirectoryStore

    return DirectoryStore(config.weight_directory, deadline_s=config.weights.deadline_s)
