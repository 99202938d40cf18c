"""What travels between stages: frozen, validated where bytes enter (common/codec.py), never mutated after.

Shapes: P prompt tokens, T response tokens, K teacher's top-k. Ids are int32, log-probabilities float32 (natural log).
What every sample is made of is a NamedTuple, which a worker builds in a third of a frozen dataclass's time.
Invariant P5: token ids travel from sampling to training; text never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
FinishReason = Literal["stop", "length"]
_NOTHING: Mapping[str, str] = {}


class Version(NamedTuple):
    """A weight version, compared as the pair (term, step)."""

    term: int
    step: int


class Span(NamedTuple):
    """`tokens` consecutive response tokens sampled by the weights (term, step); inexact = the oldest possible version."""

    term: int
    step: int
    tokens: int
    exact: bool


class TeacherShare(NamedTuple):
    """One teacher that must score the sample, and its weight in the loss."""

    teacher: str
    weight: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the student draws; temperature 0 is greedy, top_p 1 and top_k 0 keep the full support."""

    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    top_p: float = 1.0
    top_k: int = 0


class Ticket(NamedTuple):
    """The right to sample one answer. For evaluations `seq` counts within the evaluation and `slip` is empty."""

    seq: int
    attempt: int
    prompt_id: str
    prompt_ids: Ids  # [P]
    sampling: Sampling
    slip: tuple[TeacherShare, ...]
    min_version: Version
    metadata: Mapping[str, str] = _NOTHING


class Completion(NamedTuple):
    """What the engine sampled. `versions` sum to T; `logprobs` are those of the distribution really sampled, whose k most likely ids at
    every position, best first, come along where they are recorded."""

    response_ids: Ids  # [T]
    logprobs: Floats  # [T]
    versions: tuple[Span, ...]
    finish_reason: FinishReason
    response_mask: Mask | None = None  # [T] 1 = sampled by the student, 0 = e.g. tool output
    top_ids: Ids | None = None  # [T, K]
    top_logprobs: Floats | None = None  # [T, K]


class Rollout(NamedTuple):
    """A ticket and its answer."""

    ticket: Ticket
    completion: Completion


class TeacherScore(NamedTuple):
    """One teacher's log-probabilities of the response, and its k most likely ids at every position, best first."""

    teacher: str
    digest: str  # of the teacher's weights
    logprobs: Floats  # [T]
    top_ids: Ids | None = None  # [T, K]
    top_logprobs: Floats | None = None  # [T, K]
    clamped: int = 0  # how many values were below -1e4


class Hop(NamedTuple):
    """One worker's part in a sample, in milliseconds of unix time: `added`, when the entry came that it leased (the server's clock, 0 =
    unknown); `began` and `done`, its sampling or scoring (its own clock)."""

    worker: str
    added: int
    began: int
    done: int


class ScoredRollout(NamedTuple):
    """A rollout with the scores so far; it is complete when `remaining` is empty. This is what `rollouts:*` and `scored` carry."""

    rollout: Rollout
    scores: tuple[TeacherScore, ...] = ()
    hops: tuple[Hop, ...] = ()  # the producer's, then one for each score; empty in journals of schema 1

    @property
    def remaining(self) -> tuple[TeacherShare, ...]:
        """Teachers of the slip that have not scored yet, in the slip's order."""
        return self.rollout.ticket.slip[len(self.scores) :]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One judged answer of an evaluation."""

    evaluation: str
    index: int
    version: Version
    correct: bool
    response_ids: Ids  # [T]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step in the journal: durable before it is settled. `payloads` are encoded ScoredRollouts, in batch order."""

    term: int
    step: int
    seqs: tuple[int, ...]
    attempts: tuple[int, ...]
    cursor: int
    digest: str  # sha256 over the payloads
    payloads: tuple[bytes | memoryview, ...]
    masked_tokens: int = 0  # left out by straggler = mask
    origins: tuple[str, ...] = ()  # "entry worker" of each: the entry on the bus, and who handed it off; for whoever asks later


class WeightFile(NamedTuple):
    """One file of a version, relative to its directory."""

    name: str
    bytes: int
    digest: str
    """sha256 of the file's header and the sha256 of each tensor in it, in order: every byte is hashed once."""


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Points at verified files of one version; `directory` is relative to the store's root."""

    version: Version
    kind: Literal["full", "delta"]
    directory: str
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, str]  # name -> digest of its bytes
    base: Version | None = None

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


Message = Ticket | Rollout | ScoredRollout | Evaluated | StepRecord | WeightManifest
