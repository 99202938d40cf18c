"""How long training stands still for a checkpoint of a random student, waited for and written beside training, as JSON."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from transformers import Qwen3Config, Qwen3ForCausalLM

from learner import checkpoint
from learner.line import Line
from learner.megatron.trainer import MegatronTrainer
from learner.training import TrainerSettings


def _trainer(directory: Path, hidden: int, layers: int) -> tuple[MegatronTrainer, int]:
    shape = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "head_dim": 64}
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=32_768, tie_word_embeddings=True, **shape, **heads))
    model.save_pretrained(directory)
    settings = TrainerSettings(directory, "float32", (0.9, 0.98), 1e-8, 0.0, 1.0, 8192, seed=0)
    return MegatronTrainer.build(settings), sum(parameter.numel() for parameter in model.parameters())


def measure(root: Path, hidden: int, layers: int) -> dict[str, float]:
    """Seconds; the second save of each kind counts."""
    trainer, parameters = _trainer(root / "student", hidden, layers)
    (root / "checkpoints").mkdir()
    seen: dict[str, float] = {"parameters": parameters}
    for step in (1, 2):
        begin = time.perf_counter()
        checkpoint.save(root / "checkpoints", Line(term=1, step=step).to_json(), {}, trainer.save)
        seen["waited_s"] = round(time.perf_counter() - begin, 2)
        begin = time.perf_counter()
        finish = checkpoint.begin(root / "checkpoints", Line(term=2, step=step).to_json(), {}, trainer.begin_save)
        seen["copied_s"] = round(time.perf_counter() - begin, 2)
        finish()
        seen["written_after_s"] = round(time.perf_counter() - begin, 2)
    trainer.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(measure(Path(root), given.hidden, given.layers)))


if __name__ == "__main__":
    main()
