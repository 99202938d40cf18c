"""The torch teacher: exact log-probabilities of sampled responses, at any mix of lengths, in bounded memory.

A sequence's score does not depend on what else is in the batch, up to rounding; with a token budget of 1 every sequence is computed alone
and not even that remains. The maths runs on one thread of its own, so that the event loop goes on renewing leases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from common.errors import Rejected
from common.messages import Rollout, TeacherScore
from common.pulse import Pulse
from scorers.teachers.torch.batching import sorted_batches
from scorers.teachers.torch.forward import response_scores
from scorers.teachers.torch.loading import CausalModel
from scorers.teachers.verdict import judge

Scores = list[TeacherScore | Rejected]


class TorchTeacher:
    """Scores with one loaded model."""

    def __init__(
        self,
        *,
        name: str,
        model: CausalModel,
        digest: str,
        top_k: int,
        top_vocabulary: int,
        batch_tokens: int,
        pulse: Pulse,
    ) -> None:
        self._name = name
        self._model = model
        self._digest = digest
        self._top_k = top_k
        self._top_vocabulary = min(top_vocabulary, model.vocabulary)
        self._batch_tokens = batch_tokens
        self._pulse = pulse
        self._maths = ThreadPoolExecutor(1, thread_name_prefix="teacher")

    @property
    def digest(self) -> str:
        """Of the safetensors files."""
        return self._digest

    async def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """One result per rollout, in order."""
        return await asyncio.get_running_loop().run_in_executor(self._maths, self._score, rollouts)

    async def part_complaint(self) -> str:
        """See Teacher. It is one part."""
        return ""

    async def aclose(self) -> None:
        """Ends the thread after what it is doing."""
        self._maths.shutdown(wait=False, cancel_futures=True)

    def _score(self, rollouts: Sequence[Rollout]) -> Scores:
        with self._pulse.cpu("forward"):
            refusals = [self._refusal(rollout) for rollout in rollouts]
            fine = [index for index, reason in enumerate(refusals) if reason is None]
            results: Scores = [Rejected(reason or "") for reason in refusals]
            lengths = [_length(rollouts[index]) for index in fine]
            for batch in sorted_batches(lengths, self._batch_tokens):
                chosen = [fine[place] for place in batch]
                for index, result in zip(chosen, self._score_batch([rollouts[index] for index in chosen]), strict=True):
                    results[index] = result
            return results

    def _refusal(self, rollout: Rollout) -> str | None:
        """Why a rollout cannot be computed at all."""
        prompt, response = rollout.ticket.prompt_ids, rollout.completion.response_ids
        if not len(prompt) or not len(response):
            return f"a {'response' if len(prompt) else 'prompt'} without tokens cannot be scored"
        lowest, highest = min(prompt.min(), response.min()), max(prompt.max(), response.max())
        if lowest < 0 or highest >= self._model.vocabulary:
            wrong = lowest if lowest < 0 else highest
            return f"token id {wrong} is outside the vocabulary of teacher {self._name} ({self._model.vocabulary} ids)"
        if self._model.context is not None and _length(rollout) > self._model.context:
            return f"{_length(rollout)} tokens are more than the context of teacher {self._name} ({self._model.context})"
        return None

    def _score_batch(self, rollouts: Sequence[Rollout]) -> Scores:
        raw = response_scores(self._model, rollouts, self._top_k, self._top_vocabulary)
        return judge(self._name, self._digest, raw, [len(rollout.completion.response_ids) for rollout in rollouts])


def _length(rollout: Rollout) -> int:
    return len(rollout.ticket.prompt_ids) + len(rollout.completion.response_ids)
