"""The section of the weight store. All of it but what is published, and when, may change on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.config.sections import Dtype, Positive, Seconds, Section, operational


class WeightsSection(Section):
    dir: Path | None = operational(None)
    """The store's directory, shared by learner and producers; empty = `weights/` in the run's directory."""
    url: str = operational("")
    """Instead of `dir`: `s3://…`, `gs://…` or another place that fsspec knows; for a producer also `http://…` of `reflux weights serve`."""
    token_file: Path | None = operational(None)
    """For `http://…`: file with the token that the server asks for; empty = it asks for none."""
    cache: Path | None = operational(None)
    """Where versions are downloaded and rebuilt from deltas; empty = `weights-cache/` in the run's directory."""
    full_every: Positive = operational(1)
    """Every so many versions a full one, lossless deltas between (docs/weights.md); 1 = no deltas."""
    dtype: Dtype = "float32"
    """What is published and exported."""
    keep: Annotated[int, Field(ge=2)] = operational(8)
    """Versions kept."""
    publish_every: Positive = 1
    """Steps between publications; never more than max_staleness + 1, beyond which nothing would be admitted."""
    deadline_s: Seconds = operational(600.0)
    """Longest time that the store may take to read or write a version; after that the role says so, and tries again."""
