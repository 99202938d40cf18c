"""The program behind the `math` verifier: reads JSON lines [response, answer] and writes 1 or 0 for each.

It is run as a script and imports nothing of Reflux. A question that outlasts the time limit kills the process (SIGALRM with its default
action works even inside a computation that never returns to the interpreter), and so does memory beyond the limit; its owner counts
that as wrong and starts another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import signal
import sys

MOST_MEMORY = 4 << 30
START_LIMIT_S = 120


def main(time_limit_s: int) -> None:
    """Answers until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(START_LIMIT_S)
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable()
    import math_verify  # noqa: F401 - its import is not part of the first question's time

    signal.alarm(0)
    for line in sys.stdin.buffer:
        signal.alarm(time_limit_s)
        verdict = equal(*json.loads(line))
        signal.alarm(0)
        sys.stdout.write("1\n" if verdict else "0\n")
        sys.stdout.flush()


def equal(response: str, answer: str) -> bool:
    """Whether the last mathematical expression of the response equals the answer."""
    from math_verify import parse, verify

    marked = answer if any(mark in answer for mark in ("$", "\\(", "\\[", "\\boxed")) else f"${answer}$"
    try:
        gold = parse(marked, parsing_timeout=None)
        return bool(gold) and verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None)
    except Exception:  # noqa: BLE001 - sympy and its parsers raise anything on strange text
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
