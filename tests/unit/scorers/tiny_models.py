"""Small random models and tokenizers on disk, and rollouts to score with them."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from common.messages import Completion, Rollout, Sampling, Span, TeacherShare, Ticket, Version

VOCABULARY = 29
TOKENS = tuple("0123456789abcdefghijklmnop=")  # 27: two padding rows in the embedding
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 26,
}
FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 10, "tie_word_embeddings": True, "rope_theta": 500.0}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": False}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 8, "tie_word_embeddings": False, "attention_bias": True}),
}


def save_model(directory: Path, family: str = "qwen3", seed: int = 0, **changes: object) -> Path:
    """Norms and biases are random too, so that leaving one out shows."""
    torch.manual_seed(seed)
    cls, config_cls, extra = FAMILIES[family]
    model = cls(config_cls(**{**SHAPE, **extra, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.25)
    model.save_pretrained(directory)
    return directory


def save_tokenizer(directory: Path, tokens: tuple[str, ...] = TOKENS, eos: str = "=") -> Path:
    words = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[0]))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos).save_pretrained(directory)
    return directory


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def make_rollout(prompt: list[int], response: list[int], seq: int = 0, teachers: tuple[str, ...] = ("t",)) -> Rollout:
    slip = tuple(TeacherShare(name, 1 / len(teachers)) for name in teachers)
    ticket = Ticket(seq, 0, f"p{seq}", np.array(prompt, np.int32), Sampling(1.0, 16, (26,)), slip, Version(1, 0))
    zeros = np.zeros(len(response), np.float32)
    return Rollout(ticket, Completion(np.array(response, np.int32), zeros, (Span(1, 0, len(response), True),), "stop"))


def random_rollouts(count: int, seed: int = 0, longest: int = 20) -> list[Rollout]:
    rng = np.random.default_rng(seed)
    return [
        make_rollout(
            rng.integers(0, VOCABULARY, rng.integers(1, longest)).tolist(),
            rng.integers(0, VOCABULARY, rng.integers(1, longest)).tolist(),
            seq,
        )
        for seq in range(count)
    ]
