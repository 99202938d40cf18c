"""One POST /generate. A request that would kill a real server, or that it could only refuse, has a `refusal` and is never sent.

SGLang does not check these in time: an id outside the vocabulary, logprob_start_len ≤ -2 and top_logprobs_num above the vocabulary end the
whole server with everything that is in flight on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any  # a JSON body

from common.messages import Ids
from common.sglang.shape import ModelShape

_FRAME_BYTES = 1 << 20
_TOKEN_BYTES = 512  # its id, its text, its log-probability with all digits, as an entry of a list
_TOP_BYTES = 128  # one of the likeliest ids there with its log-probability


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Samples up to `max_new_tokens`, or (0 of them) scores `ids` from position `logprob_start` + 1 on with the `top` likeliest ids."""

    ids: Ids
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = the whole vocabulary
    stop_token_ids: tuple[int, ...] = ()
    logprob_start: int | None = None
    top: int = 0

    @property
    def tokens(self) -> int:
        """Response tokens that the server works on: what in-flight caps count."""
        return self.max_new_tokens if self.logprob_start is None else max(1, len(self.ids) - self.logprob_start - 1)

    @property
    def most_reply_bytes(self) -> int:
        """No true reply is longer, in the wordiest form that SGLang has."""
        each = _TOKEN_BYTES + self.top * _TOP_BYTES
        return _FRAME_BYTES + (len(self.ids) + self.max_new_tokens) * each

    def refusal(self, shape: ModelShape) -> str | None:
        """Why it must not be sent to a server that holds a model of this shape."""
        return self._wrong_ids(shape) or self._wrong_lengths(shape) or self._wrong_draw()

    def body(self, rid: str) -> dict[str, Any]:
        """JSON. Versions that do not know the flat top-k ignore it and answer nested."""
        greedy = self.temperature == 0
        sampling: dict[str, Any] = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        if self.stop_token_ids:
            sampling["stop_token_ids"] = list(self.stop_token_ids)
        if self.top_p < 1 and not greedy:
            sampling["top_p"] = self.top_p
        if self.top_k and not greedy:
            sampling["top_k"] = self.top_k
        body: dict[str, Any] = {"rid": rid, "input_ids": self.ids.tolist(), "sampling_params": sampling, "return_logprob": True}
        if self.logprob_start is not None:
            body["logprob_start_len"] = self.logprob_start
        if self.top:
            body |= {"top_logprobs_num": self.top, "return_flat_raw_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}
        return body

    def _wrong_ids(self, shape: ModelShape) -> str | None:
        if self.ids.ndim != 1 or not len(self.ids):
            return "a prompt without tokens cannot be sent"
        for name, values in (("token id", self.ids), ("stop token id", self.stop_token_ids)):
            if not len(values):
                continue
            lowest, highest = int(min(values)), int(max(values))
            if lowest < 0 or highest >= shape.vocabulary:
                wrong = lowest if lowest < 0 else highest
                return f"{name} {wrong} is outside the vocabulary of {shape.vocabulary}"
        return None

    def _wrong_lengths(self, shape: ModelShape) -> str | None:
        length = len(self.ids)
        scoring = self.logprob_start is not None
        if self.max_new_tokens < (0 if scoring else 1):
            return f"{self.max_new_tokens} new tokens cannot be sampled"
        if length + self.max_new_tokens > shape.context or length >= shape.context:
            return (
                f"{length} tokens and {self.max_new_tokens} new ones are too long for a context of {shape.context}, of which one stays free"
            )
        if self.logprob_start is not None and not 0 <= self.logprob_start <= length:
            return f"log-probabilities from position {self.logprob_start} of {length} tokens do not exist"
        if not 0 <= self.top <= shape.vocabulary:
            return f"{self.top} likeliest ids of a vocabulary of {shape.vocabulary} do not exist"
        return None

    def _wrong_draw(self) -> str | None:
        if self.top_k == 1:
            return "top_k = 1 gives log-probabilities that depend on the server's other requests: use temperature 0"
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1 and self.top_k >= 0):
            return f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k} is no way to sample"
        return None
