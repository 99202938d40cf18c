"""The text of the task: a chain of two-digit additions and subtractions, worked out step by step.

A prompt is `47+38-12+50=`. Its answer is a scratchpad of the running totals, three digits wide and lowest digit first (the
order in which one carries), and then the result as it is read: `740+83=580-21=370+05=321#123`. Only the last number counts.
Running totals stay within 0..999. Everything here is a pure function of its `Random`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
CHARACTERS = "0123456789+-=#"
LAST_NUMBER = r"(\d+)\D*$"
OPERATIONS = (3, 4, 5)
NUMBERS = tuple(range(10, 100))
MAX_NEW_TOKENS = 48
"""The longest right answer is 43 tokens: a total, 5 steps of 7 characters, `#` and the result, the end."""


def draw_prompt(rng: Random, numbers: Sequence[int] = NUMBERS) -> str:
    total = rng.choice(numbers)
    prompt = str(total)
    for _ in range(rng.choice(OPERATIONS)):
        number = rng.choice(numbers)
        subtract = number <= total and rng.random() < 0.5
        prompt += f"{'-' if subtract else '+'}{number}"
        total += -number if subtract else number
    return f"{prompt}="


def draw_fresh_prompts(rng: Random, count: int, taken: Set[str] = frozenset(), numbers: Sequence[int] = NUMBERS) -> list[str]:
    """`count` different prompts, none of them in `taken`."""
    fresh: dict[str, None] = {}
    while len(fresh) < count:
        prompt = draw_prompt(rng, numbers)
        if prompt not in taken:
            fresh[prompt] = None
    return list(fresh)


def work_out(prompt: str) -> str:
    """The whole answer to a prompt."""
    first, *operations = re.findall(r"[+-]?\d+", prompt)
    total = int(first)
    scratchpad = f"{total:03d}"[::-1]
    for operation in operations:
        total += int(operation)
        sign, number = operation[0], operation[1:]
        scratchpad += f"{sign}{number[::-1]}={f'{total:03d}'[::-1]}"
    return f"{scratchpad}#{total:03d}"


def last_number(text: str) -> str:
    """The last number of a text as it is written there, or nothing."""
    found = re.search(LAST_NUMBER, text)
    return found.group(1) if found else ""


def question(prompt: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": last_number(work_out(prompt))}


def read_jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
