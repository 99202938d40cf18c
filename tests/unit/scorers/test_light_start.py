"""A scorer whose teacher is held by servers starts without torch: it is cheap to have many."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import save_model, save_tokenizer

from common.errors import ConfigError
from scorers.teachers.alike import same_shape
from scorers.tokenizers import ask_transformers, read_vocabulary

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "examples/arithmetic/models"
SCRIPT = """
import sys
from pathlib import Path
from common.config import load_config
from common.pulse import Pulse
from scorers import service
from scorers.probe import _before_loading
from scorers.teachers import open_teacher
config = load_config(Path("examples/arithmetic/run.toml"), ["teachers.arithmetic.kind=sglang", 'teachers.arithmetic.urls=["http://127.0.0.1:1"]'])
assert _before_loading(config, "arithmetic", Pulse()) == (False, list(range(4, 18)))
open_teacher(config, "arithmetic", Pulse())
print(sorted({"torch", "transformers"} & sys.modules.keys()))
"""


def test_a_scorer_of_a_teacher_on_servers_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("directory", [MODELS / "student", MODELS / "teacher"])
def test_a_tokenizer_s_files_say_what_its_class_says(directory: Path) -> None:
    read = read_vocabulary(directory)
    assert read is not None
    assert read == ask_transformers(directory)


def test_a_tokenizer_that_does_not_name_its_end_is_left_to_its_class(tmp_path: Path) -> None:
    save_tokenizer(save_model(tmp_path))
    assert read_vocabulary(tmp_path) == ask_transformers(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("eos_token", "another_token"))
    assert read_vocabulary(tmp_path) is None


def test_shapes_that_differ_are_no_two_copies_of_one_model(tmp_path: Path) -> None:
    one, same, wider, silent = (tmp_path / name for name in ("one", "same", "wider", "silent"))
    for directory, text in (
        (one, '{"model_type": "qwen3", "hidden_size": 8}'),
        (same, '{"text_config": {"model_type": "qwen3", "hidden_size": 8}}'),
        (wider, '{"model_type": "qwen3", "hidden_size": 16}'),
        (silent, '{"model_type": "qwen3"}'),
    ):
        directory.mkdir()
        (directory / "config.json").write_text(text)
    assert [same_shape(one, other) for other in (one, same, silent, wider)] == [True, True, True, False]
    with pytest.raises(ConfigError, match="nowhere is no model directory"):
        same_shape(one, tmp_path / "nowhere")
