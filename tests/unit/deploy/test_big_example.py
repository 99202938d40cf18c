"""The Qwen3-8B recipe cannot run here; its configurations load, fit their memory and tell the two layouts apart in nothing but places."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from common.config import load_config

HERE = Path(__file__).resolve().parents[3] / "examples/qwen3-8b-math"
LAYOUTS = ("one-machine.toml", "two-machines.toml")


@pytest.fixture
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_data", HERE / "prepare_data.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_a_configuration_whose_window_fits(name: str) -> None:
    config = load_config(HERE / name)
    assert config.window * config.largest_sample_bytes < config.bus.max_bytes
    assert config.learner.micro_batch_tokens >= config.data.max_prompt_tokens + config.sampling.max_new_tokens
    assert config.learner.ranks % config.learner.tensor_parallel == 0


def test_both_layouts_compute_the_published_recipe() -> None:
    one, two = (load_config(HERE / name) for name in LAYOUTS)
    assert (one.learner, one.optimizer, one.loss) == (two.learner.model_copy(update={"ranks": 4}), two.optimizer, two.loss)
    assert (one.learner.batch_size, one.learner.steps, one.data.samples_per_prompt, one.sampling.max_new_tokens) == (64, 300, 4, 16384)
    assert (one.optimizer.lr, one.optimizer.beta2, one.optimizer.weight_decay) == (1e-6, 0.98, 0.1)


def test_prompts_are_asked_once_and_held_out_ones_never(prepare: ModuleType) -> None:
    frame = "Solve the following math problem step by step. The last line is Answer.\n\n{}\n\nRemember to put your answer on its own line."
    held_out = [{"problem": "What is 1 + 1?", "answer": "2"}]
    dapo = [
        {"prompt": [{"content": frame.format(question)}], "reward_model": {"ground_truth": "3"}}
        for question in ("What is 1 + 2?", "What is  1 + 2?", "What is 1 + 1?")
    ]
    taken: set[str] = set()
    (held,) = prepare.lines(held_out, taken)
    (train,) = prepare.lines(dapo, taken)
    assert json.loads(held)["answer"] == "2"
    assert json.loads(train) == {"messages": [{"role": "user", "content": f"What is 1 + 2?\n\n{prepare.INSTRUCTION}"}], "answer": "3"}
