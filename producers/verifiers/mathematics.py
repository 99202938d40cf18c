"""Mathematical equality by math-verify, in a process of its own.

Why a process: the library guards itself against endless simplifications with SIGALRM, which works in the main thread only and cannot stop
a huge power inside the interpreter. Guarantees: safe to call from any thread; an answer that cannot be judged in time, or that takes the
judge down, counts as wrong and is logged; the judge ends with its owner.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from common.errors import ConfigError

log = logging.getLogger(__name__)

TIME_LIMIT_S = 5
_JUDGE = Path(__file__).with_name("judge.py")


class MathVerifier:
    """Callable (response, answer) -> bool; one judge at a time, started at the first call."""

    def __init__(self, time_limit_s: int = TIME_LIMIT_S) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("evaluation.verifier = 'math' needs the math-verify library: pip install math-verify")
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._judge: subprocess.Popen[bytes] | None = None
        self._stop: Callable[[], object] = lambda: None

    def __call__(self, response: str, answer: str) -> bool:
        if response.strip() == answer.strip():
            return True
        with self._lock:
            verdict = self._ask(json.dumps([response, answer]).encode() + b"\n")
        if verdict not in (b"1\n", b"0\n"):
            log.warning("math verification gave up on an answer of %d characters: counted as wrong", len(response))
        return verdict == b"1\n"

    def close(self) -> None:
        """Ends the judge; the next call starts another."""
        self._stop()

    def _ask(self, question: bytes) -> bytes:
        """The judge's line, or nothing when it died over the question: it is killed by its own alarm after the time limit."""
        judge = self._judge
        if judge is None or judge.poll() is not None:
            judge = self._start()
        assert judge.stdin is not None
        assert judge.stdout is not None
        try:
            judge.stdin.write(question)
            judge.stdin.flush()
            line = judge.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self._stop()
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        command = [sys.executable, "-P", str(_JUDGE), str(self._time_limit_s)]
        judge = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._judge = judge
        self._stop = weakref.finalize(self, _end, judge)
        return judge


def _end(judge: subprocess.Popen[bytes]) -> None:
    judge.kill()
    judge.communicate()
