"""From a sample's number to its ticket, without state: `seq` alone says the epoch, the prompt and which of its answers it is.

Guarantees: every prompt comes exactly once per epoch, `samples_per_prompt` times in a row; the order of an epoch depends on (seed, epoch)
alone, on every machine and with every version of numpy (the raw Philox stream, which numpy promises not to change, sorted); so a cursor
is all that a resumed run needs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from common.config import RunConfig
from common.messages import Sampling, Ticket, Version
from learner.prompts.prompt import Prompt

_WORD = (1 << 64) - 1


class Place(NamedTuple):
    """Where a sample stands in the data: pass over the prompts, row of the prompt, which of its answers."""

    epoch: int
    prompt: int
    sample: int


class PromptSource:
    """The training prompts of a run; `fingerprint` is the sha256 of the bytes they were read from."""

    def __init__(self, prompts: tuple[Prompt, ...], fingerprint: str, config: RunConfig, stop_ids: tuple[int, ...]) -> None:
        self.fingerprint = fingerprint
        self._prompts = prompts
        self._answers = config.data.samples_per_prompt
        self._seed = config.run.seed & _WORD
        self._shuffle = config.data.shuffle
        self._sampling = Sampling(config.sampling.temperature, config.sampling.max_new_tokens, stop_ids)

    def __len__(self) -> int:
        return len(self._prompts)

    def place(self, seq: int) -> Place:
        """Epoch, prompt and sample index of a sequence number."""
        turn, sample = divmod(seq, self._answers)
        epoch, position = divmod(turn, len(self._prompts))
        prompt = int(_order(self._seed, epoch, len(self._prompts))[position]) if self._shuffle else position
        return Place(epoch, prompt, sample)

    def ticket(self, seq: int, attempt: int, min_version: Version) -> Ticket:
        """The ticket of a sequence number; always the same but for `attempt` and `min_version`."""
        row = self.place(seq).prompt
        prompt = self._prompts[row]
        slip = prompt.slips[seq % len(prompt.slips)]
        return Ticket(seq, attempt, str(row), prompt.ids, self._sampling, slip, min_version, prompt.metadata)


class EvalPrompts:
    """Held-out prompts with their answers. `len` is the number of tickets of one evaluation."""

    def __init__(self, prompts: tuple[Prompt, ...], fingerprint: str, config: RunConfig, stop_ids: tuple[int, ...]) -> None:
        self.fingerprint = fingerprint
        self._prompts = prompts
        self._answers = config.evaluation.samples_per_prompt
        new_tokens = config.evaluation.max_new_tokens or config.sampling.max_new_tokens
        self._sampling = Sampling(config.evaluation.temperature, new_tokens, stop_ids, config.evaluation.top_p)

    def __len__(self) -> int:
        return len(self._prompts) * self._answers

    def tickets(self, evaluation: str, version: Version) -> list[Ticket]:
        """One ticket per answer of the evaluation of `version`; `seq` counts them."""
        return [self._ticket(index, evaluation, version) for index in range(len(self))]

    def _ticket(self, index: int, evaluation: str, version: Version) -> Ticket:
        row = index // self._answers
        prompt = self._prompts[row]
        metadata = {**prompt.metadata, "evaluation": evaluation, "answer": prompt.answer}
        return Ticket(index, 0, str(row), prompt.ids, self._sampling, (), version, metadata)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    return np.argsort(draws, kind="stable")
