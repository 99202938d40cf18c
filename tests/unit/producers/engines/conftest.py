"""Small students of every supported architecture, with nothing left at a default that could hide a mistake."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from common.config import RunConfig

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.12
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)


def build(architecture: str, directory: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    match architecture:
        case "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=20, tie_word_embeddings=True))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False))
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=20, tie_word_embeddings=False))
        case "mistral":
            model = MistralForCausalLM(MistralConfig(**SHAPE, head_dim=20, sliding_window=100))
        case "gpt_neox":
            sizes = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
        case "gemma2":
            model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=20))
        case _:
            raise AssertionError(architecture)
    randomise(model, seed)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students")
    return {name: build(name, root / name) for name in ("qwen3", "qwen2", "llama", "mistral", "gpt_neox", "gemma2")}


@pytest.fixture(scope="session")
def other_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3", tmp_path_factory.mktemp("other"), seed=5)


@pytest.fixture
def configure(students: dict[str, Path]) -> Callable[..., RunConfig]:
    def make(student: Path | None = None, **producer: object) -> RunConfig:
        path = student or students["qwen3"]
        run = {"name": "test", "seed": producer.pop("seed", 1), "deterministic": producer.pop("deterministic", False)}
        return RunConfig.model_validate(
            {
                "run": run,
                "model": {"student": path},
                "teachers": {"one": {"path": path}},
                "data": {"prompts": "none", "max_prompt_tokens": 24},
                "sampling": {"max_new_tokens": 40},
                "evaluation": {"prompts": 0},
                "producer": {"slots": 4, **producer},
            }
        )

    return make
