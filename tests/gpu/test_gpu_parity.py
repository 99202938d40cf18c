"""`make test-gpu`: on CUDA the three stages compute what they compute on a CPU. Each side is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.shapes import SHAPES, write_model

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: `make test-gpu` needs one")

Figures = Mapping[str, list[list[float]] | list[float]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(SHAPES["tiny"], tmp_path_factory.mktemp("model"), torch.device("cpu"))


def figures(model: Path, **environment: str) -> Figures:
    command = [sys.executable, str(Path(__file__).with_name("gpu_figures.py")), str(model)]
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path} | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def on_gpu(model: Path) -> Figures:
    return figures(model)


@pytest.fixture(scope="module")
def on_cpu(model: Path) -> Figures:
    return figures(model, CUDA_VISIBLE_DEVICES="")


def flat(rows: list[list[float]] | list[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([np.atleast_1d(np.asarray(row, np.float64)) for row in rows])


def test_the_teacher_gives_the_log_probabilities_of_the_cpu(on_gpu: Figures, on_cpu: Figures) -> None:
    np.testing.assert_allclose(flat(on_gpu["teacher"]), flat(on_cpu["teacher"]), rtol=0, atol=1e-4)


def test_the_engine_reports_the_probability_of_what_it_drew(on_gpu: Figures) -> None:
    np.testing.assert_allclose(flat(on_gpu["behaviour"]), flat(on_gpu["behaviour_scored"]), rtol=0, atol=1e-3)


def test_training_has_the_losses_of_the_cpu(on_gpu: Figures, on_cpu: Figures) -> None:
    np.testing.assert_allclose(on_gpu["losses"], on_cpu["losses"], rtol=1e-4)


def test_training_in_bfloat16_stays_near_float32(on_gpu: Figures) -> None:
    np.testing.assert_allclose(on_gpu["losses_bf16"], on_gpu["losses"], rtol=0.1, atol=0.05)
