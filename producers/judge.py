"""Turns finished evaluation answers into verdicts: the one place of a producer where ids become text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any  # the tokenizer is transformers' own

from common.config import RunConfig
from common.messages import Evaluated, Rollout, Version
from producers.verifiers import verifier_for


class Judge:
    """Decodes with the student's tokenizer and asks the verifier, off the event loop."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._config.model.student, trust_remote_code=False)

    @cached_property
    def _verify(self) -> Callable[[str, str], bool]:
        return verifier_for(self._config.evaluation)

    async def judge(self, rollouts: Sequence[Rollout]) -> list[Evaluated]:
        """One verdict per rollout, in order."""
        return await asyncio.to_thread(self._judge, rollouts)

    def _judge(self, rollouts: Sequence[Rollout]) -> list[Evaluated]:
        responses = [rollout.completion.response_ids for rollout in rollouts]
        texts = self._tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [self._verdict(rollout, text) for rollout, text in zip(rollouts, texts, strict=True)]

    def _verdict(self, rollout: Rollout, text: str) -> Evaluated:
        ticket, completion = rollout.ticket, rollout.completion
        oldest = min((Version(span.term, span.step) for span in completion.versions), default=ticket.min_version)
        correct = self._verify(text, ticket.metadata["answer"])
        evaluation = ticket.metadata["evaluation"]
        return Evaluated(evaluation, ticket.seq, oldest, correct, completion.response_ids, completion.finish_reason)
