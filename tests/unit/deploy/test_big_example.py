"""The Qwen3-8B recipe cannot run here; its configurations pass their dry run on directories of the models' true shapes, fit their memory
and tell the two layouts apart in nothing but places.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from common.config import load_config
from deploy.commands import run
from deploy.preflight.memory import learner_bytes, parameters
from learner.megatron.architecture import read_architecture

HERE = Path(__file__).resolve().parents[3] / "examples/qwen3-8b-math"
LAYOUTS = ("one-machine.toml", "two-machines.toml")
TOKENIZER = HERE.parent / "arithmetic/models/student"
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8,
    "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "eos_token_id": 2,
}  # fmt: skip
SHAPES = {
    "Qwen3-8B-SFT": {"num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32},
    "Qwen3-32B": {"num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 25600, "num_attention_heads": 64},
}


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


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What the runbook's commands leave behind, but the weights."""
    for name, shape in SHAPES.items():
        model = tmp_path / "models" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(QWEN3 | shape))
        (model / "model.safetensors").touch()
        shutil.copy(TOKENIZER / "tokenizer.json", model)
        settings = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": PLAIN}))
    (tmp_path / "data").mkdir()
    for name in ("dapo-math-17k", "math500"):
        line = {"messages": [{"role": "user", "content": "1+1="}], "answer": "2"}
        (tmp_path / "data" / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_passes_its_dry_run_and_fits_its_cards(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / name
    file.write_text((HERE / name).read_text().replace('"/shared/', f'"{place}/'))
    config = load_config(file, ["bus.url=", "bus.password_file="])  # the two machines' server is not here
    assert run(config, file, fresh=False, take_over=False, dry_run=True) == 0
    assert "300 steps of 64 samples, at most 192 in flight" in capsys.readouterr().out
    student = read_architecture(config.model.student)
    assert 8.1e9 < parameters(student) < 8.3e9
    assert learner_bytes(config, student) < (56e9 if config.learner.ranks == 4 else 44e9)


@pytest.mark.parametrize("name", LAYOUTS)
def test_servers_are_given_as_many_answers_as_the_slots_say_and_time_for_them(name: str) -> None:
    config = load_config(HERE / name)
    slots = config.producer.slots
    assert slots == config.window
    assert len(config.producer.urls) * (config.producer.in_flight_tokens // config.sampling.max_new_tokens) >= slots
    assert config.bus.work_deadline_s >= 2 * config.producer.deadline_s


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
