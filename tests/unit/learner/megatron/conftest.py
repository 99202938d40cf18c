"""Small students of every supported family, and trainers of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron_cases import VOCABULARY, MakeStudent, MakeTrainer, settings_for
from transformers import AutoConfig, AutoModelForCausalLM

from learner.megatron.trainer import MegatronTrainer

SHAPES: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True},
}


@pytest.fixture(scope="session")
def make_student(tmp_path_factory: pytest.TempPathFactory) -> MakeStudent:
    """Save a random student whose norms and biases are no identities; head_dim differs from hidden / heads."""

    def make(
        family: str = "qwen3",
        *,
        tied: bool = True,
        dtype: torch.dtype = torch.float32,
        rope: dict[str, object] | None = None,
        vocabulary: int = VOCABULARY,
        layers: int = 2,
        shape: dict[str, object] | None = None,
        **options: object,
    ) -> Path:
        config = AutoConfig.for_model(
            family,
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 3000.0} | (rope or {}),
            **SHAPES.get(family, {}) | (shape or {}),
        )
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                torch.nn.init.normal_(parameter, std=0.2)
        directory = tmp_path_factory.mktemp(family)
        model.to(dtype).save_pretrained(directory, **options)
        return directory

    return make


@pytest.fixture
def make_trainer(make_student: MakeStudent) -> Iterator[MakeTrainer]:
    """Build trainers one after another; the process group is left between them and at the end."""
    built: list[MegatronTrainer] = []

    def make(student: Path | None = None, **settings: object) -> MegatronTrainer:
        if built:
            built.pop().close()
        built.append(MegatronTrainer.build(settings_for(student or make_student(), **settings)))
        return built[0]

    yield make
    for trainer in built:
        trainer.close()
