"""A rollout as the page shows it, token by token: what the student was sure of and the teacher was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any  # JSON values, and transformers' tokenizer

from common.config import RunConfig
from common.messages import Floats, Ids
from deploy.report.shelf import Kept, gap_of

_TOPS = 6
"""Of the most likely tokens, at most."""
_PROMPT = 160
"""Characters of a prompt in a list."""


class Speller:
    """Ids to text, by the student's tokenizer; where that cannot be read `complaint` says so and ids stand for themselves."""

    def __init__(self, config: RunConfig | None) -> None:
        self.complaint = "a server's address alone tells no tokenizer: tokens are shown as ids"
        self._texts: dict[int, str] = {}
        self._tokenizer: Any = None
        if config is not None:
            self._read(config)

    def _read(self, config: RunConfig) -> None:
        from transformers import AutoTokenizer

        self.complaint = ""
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(config.model.student, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            self.complaint = f"the student's tokenizer cannot be read from {config.model.student} ({why}): tokens are shown as ids"

    def text(self, ids: Ids) -> str:
        """Of all of them together."""
        if self._tokenizer is None:
            return " ".join(f"#{token}" for token in ids.tolist())
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def token(self, token: int) -> str:
        """Of one alone."""
        if token not in self._texts:
            self._texts[token] = f"#{token}" if self._tokenizer is None else self._tokenizer.decode([token], skip_special_tokens=False)
        return self._texts[token]


def headline(kept: Kept, speller: Speller) -> dict[str, Any]:
    """A rollout in a list."""
    ticket, completion = kept.scored.rollout.ticket, kept.scored.rollout.completion
    gap_T = gap_of(kept.scored)
    prompt = speller.text(ticket.prompt_ids)
    return {
        "seq": ticket.seq,
        "attempt": ticket.attempt,
        "step": kept.step,
        "term": kept.term,
        "prompt": prompt if len(prompt) <= _PROMPT else prompt[:_PROMPT] + "…",
        "finish": completion.finish_reason,
        "length": kept.tokens,
        "mean": round(float(gap_T.mean()), 4),
        "worst": round(float(gap_T.max()), 4),
    }


def describe(kept: Kept, speller: Speller) -> dict[str, Any]:
    """The whole of it; the lists have one entry per token of the answer."""
    completion = kept.scored.rollout.completion
    return headline(kept, speller) | {
        "prompt": speller.text(kept.scored.rollout.ticket.prompt_ids),
        "tokens": [speller.token(token) for token in completion.response_ids.tolist()],
        "student": _rounded(completion.logprobs),
        "student_top": _tops(completion.top_ids, completion.top_logprobs, speller.token),
        "gap": _rounded(gap_of(kept.scored)),
        "versions": [[span.term, span.step, span.tokens, span.exact] for span in completion.versions],
        "teachers": [
            {
                "name": score.teacher,
                "logp": _rounded(score.logprobs),
                "top": _tops(score.top_ids, score.top_logprobs, speller.token),
            }
            for score in kept.scored.scores
        ],
    }


def _tops(ids_TK: Ids | None, logp_TK: Floats | None, text: Callable[[int], str]) -> list[list[tuple[str, float]]]:
    if ids_TK is None or logp_TK is None:
        return []
    return [
        [(text(token), round(logp, 3)) for token, logp in zip(ids, logps, strict=True)]
        for ids, logps in zip(ids_TK[:, :_TOPS].tolist(), logp_TK[:, :_TOPS].tolist(), strict=True)
    ]


def _rounded(values_T: Floats) -> list[float]:
    return [round(value, 3) for value in values_T.tolist()]
