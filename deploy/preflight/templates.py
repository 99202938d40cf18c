"""Do student and teacher make the same ids of a prompt?

A teacher that was tuned with another chat template finds the student's prompts strange, and teaches that: answers that never end.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.config import RunConfig
from deploy.preflight.finding import Finding
from learner.prompts.prompt import prepare_prompts
from learner.prompts.rows import Row
from learner.prompts.student import Student

_SAMPLES = 8
_SHOWN = 6  # tokens of a difference
_ANY_LENGTH = (1 << 30, "no limit")


def read_alike(config: RunConfig, name: str, rows: Sequence[Row]) -> Finding:
    """Compares a few of the prompts, token by token. Raises ConfigError where one of the two cannot read them at all."""
    subject = f"teacher {name}: template"
    rows = rows[:: max(1, len(rows) // _SAMPLES)][:_SAMPLES]
    one, other = Student(config.model.student), Student(config.teachers[name].path, who=f"teacher {name}")
    mine, theirs = (prepare_prompts(rows, who, _ANY_LENGTH, None) for who in (one, other))
    for row, ours, its in zip(rows, mine, theirs, strict=True):
        left, right = ours.ids.tolist(), its.ids.tolist()
        if left == right:
            continue
        at = next((i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right)))
        shown = [repr(who.tokenizer.decode(ids[at : at + _SHOWN])) for who, ids in ((one, left), (other, right))]
        says = (
            f"{row.where}: from token {at} on the student reads {shown[0]} and the teacher {shown[1]}{_switch(one, other)}: "
            "give the student's directory the teacher's chat template, or the teacher judges prompts that it was never tuned on"
        )
        return Finding(subject, "error", says)
    return Finding(subject, "ok", f"{len(rows)} prompts become the same ids")


def _switch(one: Student, other: Student) -> str:
    """Who of the two has a switch for thinking aloud."""
    has = ["enable_thinking" in str(getattr(who.tokenizer, "chat_template", "") or "") for who in (one, other)]
    if has[0] == has[1]:
        return ""
    return f" (only the {'student' if has[0] else 'teacher'}'s template has a switch for thinking)"
