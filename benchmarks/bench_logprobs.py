"""Memory of the output layer's log-probabilities, forward and backward, above weight, its gradient and the hidden states, as JSON.

The whole [tokens, vocabulary] matrix would be 4.6 GiB at 8,192 tokens and 152k entries, and its softmax and gradient as much again. Peak
resident memory is sampled from outside the mathematics' thread; each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time

import psutil
import torch

from learner.megatron.logprobs import chosen_logprobs

TOKENS = (1024, 2048, 4096, 8192)
_MIB = 1 << 20
_LOOK_S = 0.002


class Peak:
    """Highest resident memory while the block runs, in bytes above its start."""

    def __enter__(self) -> Peak:
        self._process, self._done = psutil.Process(), threading.Event()
        self.start = self.highest = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def above(self) -> int:
        """Bytes."""
        return self.highest - self.start

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_S):
            self.highest = max(self.highest, self._process.memory_info().rss)


def measure(tokens: int, vocabulary: int, hidden: int, top_k: int) -> dict[str, float]:
    """One size; what must exist in any case is touched before, and the gradients' own memory is taken off."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight_VH = (torch.randn(vocabulary, hidden) / hidden**0.5).requires_grad_()
    hidden_NH = torch.randn(tokens, hidden).requires_grad_()
    ids_NM = torch.randint(vocabulary, (tokens, 1 + top_k))
    gradients = 4 * (weight_VH.numel() + hidden_NH.numel())
    begin = time.process_time()
    with Peak() as peak:
        chosen_logprobs(hidden_NH, weight_VH, ids_NM).sum().backward()
    return {
        "tokens": tokens,
        "mib": round((peak.above - gradients) / _MIB),
        "matrix_mib": round(4 * tokens * vocabulary / _MIB),
        "cpu_s": round(time.process_time() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--here", action="store_true", help="one size, in this process")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.tokens[0], given.vocabulary, given.hidden, given.top_k)))
        return
    sizes = ("--vocabulary", str(given.vocabulary), "--hidden", str(given.hidden), "--top-k", str(given.top_k))
    for tokens in given.tokens:
        command = [sys.executable, "-m", "benchmarks.bench_logprobs", "--here", "--tokens", str(tokens), *sizes]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
