"""What a role's process keeps of the shapes that went through its model."""

import json
import os
import subprocess
import sys
from pathlib import Path

from common.config import parse_config
from deploy.roles import environment

_PROGRAM = """
import ctypes, json
import torch
from scorers.teachers.torch.linear import OneDnnLinear

class Allocated(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks mapped usmblks fsmblks used free keepcost".split()]

ask = ctypes.CDLL("libc.so.6").mallinfo2
ask.restype = Allocated
layer = OneDnnLinear(torch.nn.Linear(256, 256, bias=False).requires_grad_(False))

def kilobytes_after(lengths):
    for length in lengths:
        layer(torch.zeros(length, 256))
    now = ask()
    return (now.used + now.mapped) >> 10

with torch.inference_mode():
    print(json.dumps([kilobytes_after(range(begin, begin + 200)) for begin in (1, 201, 401, 601)]))
"""


def _config():
    return parse_config(
        {
            "run": {"name": "r"},
            "model": {"student": "s"},
            "teachers": {"t": {"path": "t"}},
            "data": {"prompts": "p"},
            "evaluation": {"prompts": 0},
        }
    )


def test_ever_new_shapes_of_batches_cost_a_role_no_more_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment(_config())},
        check=True,
        capture_output=True,
        text=True,
    )
    _, second, third, fourth = json.loads(done.stdout)
    assert max(third, fourth) - second < 4096, (second, third, fourth)  # 200 shapes are 54 MB where all of them are kept
