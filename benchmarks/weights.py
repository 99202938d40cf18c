"""Weight versions in full against deltas, bytes and times: `make bench-weights`. Prints the tables of docs/weights.md.

Synthetic: a bf16 matrix before and after one Adam step of its fp32 master weights (normal, standard deviation 0.02; 25 steps with random
gradients before), encoded, decoded, published and fetched; rates beside memcpy's on the same core. Real: the arithmetic example as it is
(fp32) and published in bf16, its versions as the store has them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from common.config import load_config
from common.messages import Version, WeightManifest
from common.weights.base import RawTensor
from common.weights.delta import apply_unchecked, encode_delta
from common.weights.directory import DirectoryStore

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples/arithmetic/run.toml"
RATES = (1e-5, 1e-6, 1e-7)
REPEATS = 7
WARM_UP = 25


def adam_direction(elements: int) -> torch.Tensor:
    """What Adam (0.9, 0.98) multiplies with the learning rate, after some steps with random gradients."""
    mean, square = torch.zeros(elements), torch.zeros(elements)
    for _ in range(WARM_UP):
        gradient = torch.randn(elements)
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square_(), 0.02)
    return mean.div_(1 - 0.9**WARM_UP) / square.div_(1 - 0.98**WARM_UP).sqrt_()


def one_step(weight: torch.Tensor, direction: torch.Tensor, lr: float) -> tuple[bytes, bytes]:
    """The published bytes before and after."""
    before, after = weight.bfloat16(), (weight - lr * direction).bfloat16()
    return before.view(torch.uint8).numpy().tobytes(), after.view(torch.uint8).numpy().tobytes()


def best(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU seconds of the quickest."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        taken.append(time.process_time() - begin)
    return min(taken)


def codec_row(base: bytes, new: bytes, lr: float) -> str:
    """Share changed, size, rates of encode and decode."""
    digests = [hashlib.sha256(tensor).hexdigest() for tensor in (base, new)]
    target = bytearray(base)

    def copy() -> None:
        memoryview(target)[:] = base

    def encode() -> bytes | None:
        return encode_delta(base, new, width=2, base_digest=digests[0], digest=digests[1])

    delta = encode()
    assert delta is not None, "a delta would be larger"

    def decode() -> None:
        copy()
        apply_unchecked(target, bytes.fromhex(digests[0]), memoryview(delta))

    decode()
    assert target == new
    size, copied = len(new) / 1e9, best(copy)
    encoded, decoded, hashed = best(encode), best(decode), best(lambda: hashlib.sha256(new), 3)
    changed = (torch.frombuffer(target, dtype=torch.int16) != torch.frombuffer(bytearray(base), dtype=torch.int16)).float().mean()
    return (
        f"| {lr:g} | {changed:.2%} | {len(delta) / len(new):.2%} | {size / encoded:.2f} ({copied / encoded:.0%}) | "
        f"{size / decoded:.2f} ({copied / decoded:.0%}) | {size / copied:.1f} | {size / hashed:.2f} |"
    )


async def store_row(root: Path, base: bytes, new: bytes, lr: float) -> str:
    """Publication and fetch through a directory, fsync and digests included."""

    def tensors(content: bytes) -> dict[str, RawTensor]:
        return {"w": RawTensor("BF16", (len(content) // 2,), memoryview(content))}

    cells = []
    for every in (1, 2):
        store, reader = (DirectoryStore(root / f"{lr}-{every}", full_every=every, cache=root / "cache") for _ in range(2))
        await reader.fetch(await store.put(Version(1, 0), tensors(base)))
        begin = time.perf_counter()
        manifest = await store.put(Version(1, 1), tensors(new))
        put = time.perf_counter() - begin
        await reader.fetch(manifest)
        cells.append(f"{manifest.kind}: {manifest.bytes / 1e6:.2f} MB, put {put:.2f} s, fetch {time.perf_counter() - begin - put:.2f} s")
    return f"| {lr:g} | {' | '.join(cells)} |"


def real_row(directory: Path, dtype: str, steps: int) -> str:
    """The example, with a full version at least every 8."""
    given = {"run.dir": directory, "run.name": dtype, "weights.dtype": dtype, "weights.full_every": 8, "weights.keep": steps + 2}
    given |= {"learner.steps": steps, "evaluation.prompts": 64}
    command = [sys.executable, "-m", "deploy", "run", str(EXAMPLE), *(part for key in given for part in ("--set", f"{key}={given[key]}"))]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    config = load_config(directory / dtype / "config.toml")
    manifests = asyncio.run(_manifests(DirectoryStore(config.weight_directory)))
    full = max(manifest.bytes for manifest in manifests)
    deltas = [manifest for manifest in manifests if manifest.kind == "delta"]
    share = f"{sum(one.bytes for one in deltas) / len(deltas) / full:.1%}" if deltas else "—"
    together = sum(one.bytes for one in manifests) / full / len(manifests)
    counts = f"{len(manifests)} | {len(manifests) - len(deltas)} | {len(deltas)}"
    return f"| {config.optimizer.lr:g}, {dtype} | {counts} | {share} | {together:.1%} |"


async def _manifests(store: DirectoryStore) -> list[WeightManifest]:
    return [await store.manifest_of(version) for version in await store.versions()]


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=100, help="of the synthetic matrix in bf16")
    parser.add_argument("--steps", type=int, default=60, help="of the real runs; 0 leaves them out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    weight, direction = torch.randn(arguments.megabytes * 500_000) * 0.02, adam_direction(arguments.megabytes * 500_000)
    cases = [(lr, *one_step(weight, direction, lr)) for lr in RATES]
    print("| lr | changed | delta, share of full | encode GB/s (of memcpy) | decode GB/s (of memcpy) | memcpy GB/s | sha256 GB/s |")
    print("|---|---|---|---|---|---|---|")
    for lr, base, new in cases:
        print(codec_row(base, new, lr), flush=True)
    print("\n| lr | in full | as a delta |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for lr, base, new in cases:
            print(asyncio.run(store_row(Path(directory), base, new, lr)), flush=True)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    if arguments.steps:
        print("\n| example at lr | versions | full | deltas | mean delta, share of full | all, share of full |\n|---|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as directory:
            for dtype in ("float32", "bfloat16"):
                print(real_row(Path(directory), dtype, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
