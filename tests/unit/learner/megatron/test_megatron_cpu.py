"""The seam for machines without CUDA touches Megatron and nothing else."""

from __future__ import annotations

import ast
import sys

import pytest
import torch
from megatron.core.tensor_parallel import random as parallel_random
from megatron_cases import MakeTrainer

from learner.megatron import cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is rewritten where there is CUDA")


def test_torch_itself_stays_as_it_is() -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.current_device()
    assert torch.zeros(1).type() == "torch.FloatTensor"


def test_installing_twice_changes_nothing() -> None:
    finders = list(sys.meta_path)
    cpu.install_import_hook()
    assert sys.meta_path == finders


def test_a_parallel_random_stream_is_forked_and_comes_back(make_trainer: MakeTrainer) -> None:
    make_trainer()
    tracker = parallel_random.get_cuda_rng_tracker()
    outside = torch.get_rng_state()
    with tracker.fork():
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), outside)
    with tracker.fork():
        assert not torch.equal(torch.rand(3), first)


def test_devices_and_type_names_are_rewritten() -> None:
    source = "a = t.type() == 'torch.cuda.FloatTensor' or torch.zeros(1, device=torch.cuda.current_device()) or b.cuda()"
    rewritten = ast.unparse(cpu._Rewrite().visit(ast.parse(source)))
    assert rewritten == "a = t.type() == 'torch.FloatTensor' or torch.zeros(1, device='cpu') or b.cpu()"
