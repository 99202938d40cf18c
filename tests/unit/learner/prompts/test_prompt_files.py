from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from common.config import RunConfig
from common.errors import ConfigError
from common.messages import Version
from learner.prompts import load_eval_prompts, load_prompts
from learner.prompts.rows import read_rows

Configured = Callable[..., RunConfig]
GOOD = {"prompt": "1+1="}


def ids(config: RunConfig) -> list[list[int]]:
    source = load_prompts(config)
    return [source.ticket(seq, 0, Version(1, 0)).prompt_ids.tolist() for seq in range(len(source))]


def refusal(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_prompts(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([1], "line 2 is no JSON object"),
        ({}, "line 2 has neither `prompt` nor `messages`"),
        ({"prompt": None}, "line 2 has neither"),
        ({"prompt": "1", "messages": []}, "line 2 has both"),
        ({"prompt": 5}, "line 2: `prompt` must be text or a list"),
        ({"prompt": ""}, "line 2 has an empty prompt"),
        ({"prompt": []}, "line 2 has an empty prompt"),
        ({"prompt": [1, "2"]}, "line 2: `prompt` must be text or a list of token ids (integers)"),
        ({"prompt": [1, True]}, "line 2: `prompt` must be text or a list of token ids (integers)"),
        ({"prompt": [1, -1]}, "line 2 has a prompt with ids that are not in"),
        ({"prompt": [1, 1000]}, "the student's vocabulary"),
        ({"prompt": "1" * 49}, "a prompt of 49 tokens, longer than 48 (the student's context of 64 less sampling.max_new_tokens = 16)"),
        ({"messages": "hello"}, "line 2: `messages` must be a list of objects"),
        ({"messages": ["hello"]}, "line 2: `messages` must be a list of objects"),
        ({"prompt": "1", "teacher": "gpt"}, "line 2 names the unknown teacher 'gpt': known are default, other"),
        ({"prompt": "1", "teacher": ["other", "gpt"]}, "unknown teacher 'gpt'"),
        ({"prompt": "1", "teacher": {"a": 1}}, "unknown teacher"),
        ({"prompt": "1", "teacher": []}, "one name or a list of different names"),
        ({"prompt": "1", "teacher": ["other", "other"]}, "one name or a list of different names"),
        ({"prompt": "1", "metadata": 3}, "line 2: `metadata` must be an object"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(configured: Configured, row: Any, sentence: str) -> None:
    teachers = {"default": {"path": "/t"}, "other": {"path": "/t"}}
    assert sentence in refusal(configured([GOOD, row], teachers=teachers))


def test_broken_json_is_refused_with_its_line(configured: Configured, tmp_path: Path) -> None:
    config = configured([])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1"}\n\n{"prompt": \n')
    assert "prompts.jsonl line 3 is broken JSON" in refusal(config)
    (tmp_path / "prompts.jsonl").write_bytes(b'{"prompt": "1"}\n{"prompt": "\xff"}\n')
    assert "prompts.jsonl line 2 is broken JSON" in refusal(config)
    (tmp_path / "prompts.jsonl").write_bytes(b"[" * 100_000)
    assert "line 1 is broken JSON" in refusal(config)


def test_a_prompt_longer_than_the_configured_limit_is_refused(configured: Configured) -> None:
    assert "a prompt of 4 tokens, longer than 3 (data.max_prompt_tokens)" in refusal(configured([GOOD], data={"max_prompt_tokens": 3}))


def test_answers_that_fill_the_context_are_refused(configured: Configured) -> None:
    assert "sampling.max_new_tokens = 64 leaves no room" in refusal(configured([GOOD], sampling={"max_new_tokens": 64}))


def test_a_prompt_must_name_a_teacher_when_there_are_several(configured: Configured) -> None:
    sentence = refusal(configured([GOOD], teachers={"a": {"path": "/t"}, "b": {"path": "/t"}}))
    assert "names no `teacher`: write one of a, b" in sentence


def test_missing_and_empty_sources_are_refused(configured: Configured, tmp_path: Path) -> None:
    assert "does not exist" in refusal(configured())
    assert "data.prompts is empty: name a .jsonl" in refusal(configured(data={"prompts": ""}))
    assert "is empty: it needs at least one prompt" in refusal(configured([]))
    assert "unknown ending" in refusal(configured(data={"prompts": str(Path(__file__))}))
    (tmp_path / "folder").mkdir()
    assert "no .jsonl or .parquet file" in refusal(configured(data={"prompts": str(tmp_path / "folder")}))


def test_a_student_that_is_no_model_directory_is_refused(configured: Configured, tmp_path: Path) -> None:
    assert "is no directory" in refusal(configured([GOOD], model={"student": str(tmp_path / "none")}))
    assert "has no config.json" in refusal(configured([GOOD], model={"student": str(tmp_path)}))
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    assert "has no usable tokenizer" in refusal(configured([GOOD], model={"student": str(tmp_path)}))
    (tmp_path / "config.json").write_text("{}")
    assert "names no eos_token_id" in refusal(configured([{"prompt": [1]}], model={"student": str(tmp_path)}))


def test_token_ids_need_no_tokenizer(configured: Configured, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 7]}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    source = load_prompts(configured([{"prompt": [1]}], model={"student": str(tmp_path)}))
    assert source.ticket(0, 0, Version(1, 0)).sampling.stop_token_ids == (1, 3, 7)


def test_a_directory_is_read_in_the_order_of_its_names(configured: Configured, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"prompt": [9]}\n')
    parquet.write_table(pa.table({"prompt": [[4, 5], [6]], "unused": [1, 2]}), folder / "a.parquet")
    (folder / "notes.txt").write_text("not a prompt")
    config = configured(data={"prompts": str(folder), "shuffle": False})
    assert ids(config) == [[4, 5], [6], [9]]


def test_parquet_says_the_same_as_jsonl(configured: Configured, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "1+1=", "messages": None, "teacher": None, "metadata": {"a": "x"}},
        {"prompt": None, "messages": [{"role": "user", "content": "2", "name": None}], "teacher": ["default"], "metadata": {"a": None}},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    from_parquet = load_prompts(configured(data={"prompts": str(tmp_path / "p.parquet"), "shuffle": False}))
    from_jsonl = load_prompts(configured(rows, data={"shuffle": False}))
    for seq in range(2):
        one, two = from_parquet.ticket(seq, 0, Version(1, 0)), from_jsonl.ticket(seq, 0, Version(1, 0))
        assert (one.prompt_ids.tolist(), one.slip, one.metadata) == (two.prompt_ids.tolist(), two.slip, two.metadata)


def test_broken_parquet_is_refused(configured: Configured, tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 is not enough")
    assert "no readable Parquet file" in refusal(configured(data={"prompts": str(tmp_path / "p.parquet")}))


def test_a_parquet_file_that_claims_more_rows_than_it_has_takes_no_memory_for_them(tmp_path: Path) -> None:
    file = tmp_path / "prompts.parquet"
    file.write_bytes((Path(__file__).parents[3] / "fuzz/found/prompts-7dfa32bc6c85").read_bytes())
    before, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with suppress(ConfigError):
            read_rows(str(file), "data.prompts")
    finally:
        pa.set_memory_pool(before)
    assert 0 < (counted.max_memory() or 0) < 1 << 20


def test_the_fingerprint_is_of_the_bytes(configured: Configured, tmp_path: Path) -> None:
    first = load_prompts(configured([GOOD])).fingerprint
    assert load_prompts(configured([GOOD])).fingerprint == first
    (tmp_path / "prompts.jsonl").write_text(json.dumps(GOOD) + " \n")
    assert load_prompts(configured()).fingerprint != first


def test_a_dataset_saved_by_the_datasets_library_is_read(configured: Configured, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list([{"prompt": "1+1="}, {"prompt": "2"}])
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "both")
    saved.save_to_disk(tmp_path / "one")
    assert len(load_prompts(configured(data={"prompts": f"datasets:{tmp_path / 'one'}"}))) == 2
    train = load_prompts(configured(data={"prompts": f"datasets:{tmp_path / 'both'}"}))
    test = load_prompts(configured(data={"prompts": f"datasets:{tmp_path / 'both'}:test"}))
    assert (len(train), len(test)) == (2, 1)
    assert train.fingerprint != test.fingerprint
    assert "cannot load data.prompts" in refusal(configured(data={"prompts": f"datasets:{tmp_path / 'both'}:validation"}))


def test_without_the_datasets_library_the_error_says_what_to_install(configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'reflux[datasets]'" in refusal(configured(data={"prompts": "datasets:somewhere"}))


def test_held_out_prompts_need_answers(configured: Configured) -> None:
    for row, sentence in ((GOOD, "line 1 has no `answer`"), ({**GOOD, "answer": ["2"]}, "`answer` must be text or a number")):
        file = configured([row]).data.prompts
        with pytest.raises(ConfigError, match=sentence):
            load_eval_prompts(configured(data={"eval_prompts": file}, evaluation={"prompts": 1}))


def test_messages_without_a_chat_template_are_refused(configured: Configured, student: Path, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(student, bare)
    (bare / "chat_template.jinja").unlink()
    config = configured([{"messages": [{"role": "user", "content": "1"}]}], model={"student": str(bare)})
    assert "line 1 has `messages`, but the student's tokenizer has no chat template" in refusal(config)
