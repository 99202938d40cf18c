"""The most memory that hostile bytes can take: each in a process of its own, which says what it took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAM = """
import resource, struct, sys, zstandard
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from decoders import DECODERS, MODEL_FILE, SEEDS, codec, _place
from common.codec import MAX_HEADER_BYTES, MAX_LIST_BYTES
from common.config import load_config
from common.errors import ConfigError, WeightsError
from common.messages import Version
from common.weights.directory import DirectoryStore

def frame(kind, header):
    return struct.pack("<4sHHI", b"RFX1", 2, kind, len(header)) + header + bytes(-len(header) % 4)

def bomb(kind, piece):
    room = (MAX_LIST_BYTES if kind > 4 else MAX_HEADER_BYTES) - 8
    count = room // len(piece)
    codec(frame(kind, b"\\xdd" + struct.pack(">I", count) + piece * count))

def sparse(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    return path

def manifest():
    path = sparse(_place / "big" / "term000001-step00000002" / "manifest.rfx")
    try:
        DirectoryStore(path.parents[1])._manifest_of(Version(1, 2))
    except WeightsError as error:
        print(error)

def config():
    try:
        load_config(sparse(_place / "big.toml"))
    except ConfigError as error:
        print(error)

def weights():
    header = b'{"a":[' + b"[]," * (5 << 19) + b"0]}"
    DECODERS["manifest"](b"\\xff" + len(header).to_bytes(8, "little") + header)

def journal():
    for begin in (b"\\xff\\xff\\xff\\xff\\0\\0\\0\\0", b"\\0\\0\\0\\x40\\0\\0\\0\\0RFX1"):
        DECODERS["journal"](b"\\0" + begin + bytes(64))

def claims():
    for width in range(1, 7):
        for length in (2**16, 2**31, 2**32 - 1):
            codec(frame(width, b"\\xdd" + struct.pack(">I", length)))
            codec(frame(width, b"\\xc6" + struct.pack(">I", length)))
            codec(frame(width, b"\\xdf" + struct.pack(">I", length)))

def bombs():
    for kind in (1, 6):
        for piece in (b"\\x91\\xc0", b"\\x81\\xa0\\xc0", b"\\xa2ab"):
            bomb(kind, piece)
        codec(frame(kind, b"\\x91" * MAX_HEADER_BYTES))

def deltas():
    gigabyte = zstandard.ZstdCompressor().compressobj(size=1 << 30)
    packed = b"".join(gigabyte.compress(bytes(1 << 20)) for _ in range(1 << 10)) + gigabyte.flush()
    assert zstandard.frame_content_size(packed) == 1 << 30
    whole = SEEDS["delta"][0]
    for changed in (1, 2**32 - 1):
        for gaps, xors in ((packed, b""), (b"", packed), (packed, packed)):
            DECODERS["delta"](whole[:81] + struct.pack("<III", changed, len(gaps), len(xors)) + gaps + xors)

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
globals()[sys.argv[2]]()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
MEGABYTES = {"claims": 16, "bombs": 400, "journal": 16, "manifest": 64, "config": 16, "weights": 300, "deltas": 16}


@pytest.mark.parametrize("what", MEGABYTES)
def test_hostile_bytes_cost_an_error_and_little_memory(what: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(HERE), what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < MEGABYTES[what]
