"""One ticket on its way through the engine. Made on the event loop, then owned by the maths thread until its future is resolved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from common.errors import Rejected
from common.messages import Completion, Span, Ticket, Version
from producers.engines.torch.loader import Student


@dataclass(slots=True, eq=False)
class Request:
    """What the scheduler queues and a slot carries."""

    ticket: Ticket
    stops: tuple[int, ...]
    future: asyncio.Future[Completion]
    row: int = -1  # the slot, while it has one
    swaps: list[tuple[Version, int]] = field(default_factory=list)  # version, and how many tokens older ones had sampled

    @property
    def prompt_tokens(self) -> int:
        """P."""
        return len(self.ticket.prompt_ids)

    @property
    def limit(self) -> int:
        """Most tokens of the answer."""
        return self.ticket.sampling.max_new_tokens

    @property
    def evaluation(self) -> str:
        """The evaluation it belongs to, empty for training."""
        return self.ticket.metadata.get("evaluation", "")

    def begins(self, version: Version, tokens: int) -> None:
        """From token number `tokens` on, `version` samples."""
        self.swaps.append((version, tokens))

    def spans(self, tokens: int) -> tuple[Span, ...]:
        """The run-length record of an answer of so many tokens; every engine swap is exact."""
        ends = [start for _, start in self.swaps[1:]] + [tokens]
        return tuple(
            Span(version.term, version.step, end - start, exact=True)
            for (version, start), end in zip(self.swaps, ends, strict=True)
            if end > start
        )


def check_fits(ticket: Ticket, student: Student) -> None:
    """Raises Rejected for a ticket that this student cannot sample."""
    prompt, new = len(ticket.prompt_ids), ticket.sampling.max_new_tokens
    if prompt == 0:
        raise Rejected("the prompt is empty")
    if prompt + new > student.context:
        raise Rejected(f"{prompt} prompt tokens and {new} new ones are too long for the student's context of {student.context}")
    if ticket.prompt_ids.view(np.uint32).max() >= student.vocabulary:  # unsigned, a negative id is a large one
        outside = next(int(each) for each in ticket.prompt_ids if not 0 <= each < student.vocabulary)
        raise Rejected(f"prompt id {outside} is outside the student's vocabulary of {student.vocabulary}")
