"""Opens a model directory as body and head, or says in one sentence why it cannot.

Guarantee: whatever is returned gives, by hidden states and head apart and right-padded without a mask, the logits of the model's own
forward. An architecture that scales or caps its logits, or looks ahead, is refused instead of being scored wrongly.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # configurations and outputs of transformers are untyped

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from common.errors import ConfigError
from scorers.teachers.torch.last_mlp import LastMlp, last_mlp
from scorers.teachers.torch.linear import take_one_dnn
from scorers.teachers.torch.short import ShortBody, can_be_short

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the largest logit


@dataclass(frozen=True, slots=True)
class CausalModel:
    """A causal language model in two parts."""

    body: nn.Module
    head: nn.Module
    vocabulary: int  # rows of the head, padding rows included
    context: int | None  # most tokens of a sequence
    device: torch.device
    last_mlp: LastMlp | None = None
    short: ShortBody | None = None

    def hidden(self, ids_BL: Tensor, read_R: Tensor) -> Tensor:
        """[R, hidden] at the flat positions `read_R` of right-padded ids: in a causal model no token sees what is behind it, so that no
        mask is needed."""
        if self.short and ids_BL.shape[1] <= self.short.longest:
            return self.short.hidden(ids_BL, read_R)
        with self.last_mlp.reading(read_R) if self.last_mlp else nullcontext():
            hidden_BLH: Tensor = self.body(input_ids=ids_BL, use_cache=False).last_hidden_state
        return hidden_BLH.flatten(0, 1).index_select(0, read_R)


def load_config_of(directory: Path) -> Any:
    """The transformers configuration of a model directory that holds a causal language model."""
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} is no model directory (it has no config.json): give the path of a Hugging Face model")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the architecture of {directory} is not supported by the installed transformers: {reason}") from None
    names = config.architectures or []
    if not set(names) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise ConfigError(f"{directory} is not a causal language model (its architecture is {', '.join(names) or 'unknown'})")
    return config


def load_causal_model(directory: Path, dtype: torch.dtype, device: torch.device) -> CausalModel:
    """Reads safetensors only; raises ConfigError."""
    config = load_config_of(directory)
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f"{directory} has no .safetensors files: save the model with save_pretrained(…, safe_serialization=True)")
    disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"cannot load the weights of {directory} ({str(error).splitlines()[0]}): copy the whole model again") from None
    missing = sorted(found["missing_keys"])
    if missing:
        raise ConfigError(f"{directory} lacks {len(missing)} of the model's weights, {missing[0]} first: copy the whole model again")
    model = model.to(device).eval().requires_grad_(False)
    take_one_dnn(model.base_model)
    head = model.get_output_embeddings()
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    short = ShortBody(model) if can_be_short(model) else None
    loaded = CausalModel(model.base_model, head, head.weight.shape[0], context, device, last_mlp(model.base_model), short)
    _check_parts(directory, model, loaded, dtype)
    return loaded


@torch.inference_mode()
def _check_parts(directory: Path, model: Any, parts: CausalModel, dtype: torch.dtype) -> None:
    """A short and a long sequence together, by parts, against each by itself through the model's own forward, but for the first token."""
    length = min(8, parts.context or 8)
    ids_BL = torch.arange(2 * length, device=parts.device).view(2, length) % parts.vocabulary
    read_BL = torch.arange(ids_BL.numel(), device=parts.device).view_as(ids_BL)[:, 1:]
    split_BLV = parts.head(parts.hidden(ids_BL, read_BL.flatten())).unflatten(0, read_BL.shape)
    for row, size in ((0, length), (1, length // 2)):
        whole_LV = model(input_ids=ids_BL[row : row + 1, :size], use_cache=False).logits[0, 1:].float()
        difference = (split_BLV[row, : size - 1].float() - whole_LV).abs().max()
        if difference > _TOLERANCE[dtype] * (1 + whole_LV.abs().max()):
            raise ConfigError(
                f"the architecture of {directory} is not supported: its logits are not its head applied to its last hidden state, "
                "or depend on later tokens; take a teacher such as Qwen3, Qwen2, Llama or Mistral"
            )
