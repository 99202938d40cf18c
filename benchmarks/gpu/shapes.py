"""Random Qwen3 models of real sizes, the samples they are measured with, and the floating-point operations that those take.

Operations are counted as in the PaLM paper's appendix B: two per weight of every matrix and token, four per key, query, head dimension and
layer in attention (half of that for a causal mask); a training step is three forward passes. The head counts where it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from common.messages import Ids


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3 model."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def body(self) -> int:
        """Weights of the linear layers below the head."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.hidden * self.vocabulary

    def forward_flops(self, prompt: int, response: int) -> float:
        """Of one sample: the head on response rows only."""
        length = prompt + response
        attention = 2 * self.layers * self.heads * self.head_dim * length * length
        return 2.0 * self.body * length + 2.0 * self.head * response + attention


SHAPES = {
    "tiny": Shape(64, 2, 192, 4, 2, 32, 512),
    "0.6b": Shape(1024, 28, 3072, 16, 8),
    "1.7b": Shape(2048, 28, 6144, 16, 8),
    "4b": Shape(2560, 36, 9728, 32, 8),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Random ids."""

    prompt_ids: Ids
    response_ids: Ids

    @property
    def length(self) -> int:
        """Prompt and response tokens."""
        return len(self.prompt_ids) + len(self.response_ids)


def write_model(shape: Shape, directory: Path, device: torch.device) -> Path:
    """A model directory with random bfloat16 weights, initialised where that is fast."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    with device:
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def draw_samples(count: int, vocabulary: int, prompt: int, response: int, seed: int = 0) -> Sequence[Sample]:
    """Lengths uniform within a quarter around the means, as answers of one task differ."""
    rng = np.random.default_rng(seed)

    def ids(mean: int) -> Ids:
        return rng.integers(0, vocabulary, int(mean * rng.uniform(0.75, 1.25)), dtype=np.int32)

    return [Sample(ids(prompt), ids(response)) for _ in range(count)]
