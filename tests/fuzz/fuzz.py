"""`python tests/fuzz/fuzz.py DECODER [SECONDS] [SEED]`: feeds a decoder for so many CPU seconds; guided by coverage where atheris is there.

An input that ends in anything but the declared error, or takes too much memory, is kept in tests/fuzz/found/, where `make test` tries it
for ever, and the exit code is 1.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

FOUND = Path(__file__).with_name("found")
MOST_MEGABYTES = 256
"""By how much one input may raise what the process takes."""


def taken_megabytes() -> float:
    """The most that this process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep(name: str, data: bytes) -> Path:
    """Where the input lies from now on."""
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def mutate_until(name: str, seconds: float, seed: int) -> int:
    """The exit code."""
    logging.disable()  # a million warnings of torn frames
    from decoders import DECODERS, SEEDS
    from mutations import mutated

    decoder, seeds, draw, tried = DECODERS[name], SEEDS[name], random.Random(seed), 0
    limit = time.process_time() + seconds
    while time.process_time() < limit:
        data, before = mutated(draw, seeds), taken_megabytes()
        try:
            decoder(data)
            assert taken_megabytes() < before + MOST_MEGABYTES, f"{taken_megabytes() - before:.0f} MB for {len(data)} bytes"
        except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
            traceback.print_exc()
            print(f"{name}: kept {keep(name, data)}")
            return 1
        tried += 1
    print(f"{name}: {tried:,} inputs in {seconds:.0f} CPU seconds, nothing found; at most {taken_megabytes():.0f} MB")
    return 0


def guided_until(name: str, seconds: float, seed: int) -> None:
    """Ends the process."""
    import atheris

    logging.disable()

    with atheris.instrument_imports(include=["common", "learner", "msgpack"]):
        from decoders import DECODERS, SEEDS

    decoder, limit, tried = DECODERS[name], time.process_time() + seconds, 0

    def one(data: bytes) -> None:
        nonlocal tried
        try:
            decoder(data)
        except Exception:
            print(f"{name}: kept {keep(name, data)}")
            raise
        tried += 1
        if time.process_time() > limit:
            print(
                f"{name}: {tried:,} guided inputs in {seconds:.0f} CPU seconds, nothing found; at most {taken_megabytes():.0f} MB",
                flush=True,
            )
            os._exit(0)

    FOUND.mkdir(exist_ok=True)  # where libFuzzer keeps what took too long or too much memory
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(SEEDS[name]):
            (Path(corpus) / str(number)).write_bytes(data)
        limits = [f"-seed={seed}", f"-rss_limit_mb={4 * MOST_MEGABYTES + 1024}", "-max_len=65536", "-timeout=20", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={FOUND}/{name}-", corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    arguments = (sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 300.0, int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    if find_spec("atheris"):
        guided_until(*arguments)
    sys.exit(mutate_until(*arguments))
