"""What the learner cannot train exactly, it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from megatron_cases import MakeStudent, edit_config

from common.errors import ConfigError
from learner.megatron.architecture import read_architecture

REFUSED = [
    ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM; the learner trains Qwen3ForCausalLM"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope scaling 'yarn'"),
    ({"rope_parameters": None, "rope_theta": 1.0, "rope_scaling": {"type": "linear"}}, "rope scaling 'linear' lacks factor"),
    ({"rope_parameters": None}, "no rope_theta"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 64}, "sliding_window = 64"),
    ({"hidden_act": "gelu"}, "hidden_act = gelu"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"num_experts_per_tok": 1, "norm_topk_prob": True}, "num_experts_per_tok = 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_would_change_the_logits_is_refused(changes: dict[str, object], message: str, make_student: MakeStudent) -> None:
    student = make_student()
    edit_config(student, **changes)
    with pytest.raises(ConfigError, match=message):
        read_architecture(student)


def test_a_directory_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model directory"):
        read_architecture(tmp_path)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_architecture(tmp_path)
