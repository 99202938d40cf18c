"""Configuration: every mistake is one sentence, paths are absolute, identity is what the run computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from common.config import RunConfig, load_config, parse_config
from common.config.sections import LearnerSection, TeacherSection
from common.errors import ConfigError

SOUND = """
[run]
name = "first"
[model]
student = "models/student"
[teachers.maths]
path = "models/teacher"
[data]
prompts = "prompts.jsonl"
eval_prompts = "held_out.jsonl"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "conf" / "run.toml"
    path.parent.mkdir()
    path.write_text(SOUND)
    return path


def sentence(file: Path, addition: str = "", *overrides: str) -> str:
    file.write_text(file.read_text() + addition)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values(**sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"run": {"name": "r"}, "model": {"student": "/s"}, "teachers": {"t": {"path": "/t"}}, "data": {"prompts": "/p"}}
    return base | {"evaluation": {"prompts": 0}} | sections


def test_paths_in_the_file_are_relative_to_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(file, ["data.eval_prompts=other.jsonl", "weights.dir=/shared", "data.prompts=datasets:org/name:test"])
    assert config.model.student == file.parent / "models/student"
    assert config.teachers["maths"].path == file.parent / "models/teacher"
    assert config.data.eval_prompts == str(tmp_path / "other.jsonl")
    assert config.data.prompts == "datasets:org/name:test"
    assert config.weight_directory == Path("/shared")
    assert config.directory == tmp_path / "runs" / "first"


def test_the_weight_store_is_in_the_runs_directory_unless_named(file: Path) -> None:
    config = load_config(file)
    assert config.weight_directory == config.directory / "weights"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learner.steps=7", 7),
        ("optimizer.lr=1e-3", 1e-3),
        ("data.shuffle=false", False),
        ("loss.kind=topk_forward_kl", "topk_forward_kl"),
        ('loss.kind="topk_forward_kl"', "topk_forward_kl"),
        ("sampling.stop_token_ids=[1, 2]", (1, 2)),
        ("teachers.maths.top_k=16", 16),
        ("evaluation.pattern=a=(b)", "a=(b)"),
        (" learner.steps = 7", 7),
    ],
)
def test_set_changes_one_key(file: Path, override: str, expected: object) -> None:
    value: Any = load_config(file, [override])
    for part in override.partition("=")[0].strip().split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == expected


def test_later_settings_win_and_leave_the_others(file: Path) -> None:
    file.write_text(SOUND + "[learner]\nsteps = 5\nbatch_size = 3\n")
    config = load_config(file, ["learner.steps=6", "learner.steps=7"])
    assert (config.learner.steps, config.learner.batch_size) == (7, 3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learner.steps", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("learner.step=3", "unknown key learner.step: did you mean learner.steps?"),
        ("lerner.steps=3", "unknown key lerner: did you mean learner?"),
        ("teachers.maths.topk=3", "unknown key teachers.maths.topk: did you mean teachers.maths.top_k?"),
        ("loss.zzzzzz=3", "unknown key loss.zzzzzz: known here are advantage_cap, clip"),
        ("learner.steps=0", "learner.steps = 0 is wrong: input should be greater than 0"),
        ("learner.steps=many", "learner.steps = 'many' is wrong"),
        ("learner.straggler=drop", "learner.straggler = 'drop' is wrong: input should be 'mask', 'retry' or 'wait'"),
        ("learner.lora_rank=-1", "learner.lora_rank = -1 is wrong: input should be greater than or equal to 0"),
        ("learner.lora_alpha=0", "learner.lora_alpha = 0 is wrong: input should be greater than 0"),
        ("learner.lora_targets=[]", "learner.lora_targets = [] is wrong"),
        ('learner.lora_targets=["q_proj"]', "'q_proj' is wrong: input should be 'linear_qkv', 'linear_proj', 'linear_fc1' or 'linear_fc2'"),
        ('learner.lora_targets=["linear_qkv", "linear_qkv"]', "learner.lora_targets names a layer twice: name each once"),
        ("run.name=../up", "run.name = '../up' is wrong"),
        ("loss.ratio_low=9", "loss.ratio_low must be below loss.ratio_high"),
        ("producer.record_top_k=65", "producer.record_top_k = 65 is wrong: input should be less than or equal to 64"),
        ("teachers.maths.top_k=0", "needs top_k > 0 of teachers.maths"),
    ],
)
def test_a_wrong_setting_is_one_sentence(file: Path, override: str, expected: str) -> None:
    assert expected in sentence(file, "", override)


def test_adapters_are_part_of_what_a_run_computes(file: Path) -> None:
    turned = ['learner.lora_targets=["linear_fc2", "linear_proj"]', 'learner.lora_targets=["linear_proj", "linear_fc2"]']
    one, other = (load_config(file, ["learner.lora_rank=8", order]) for order in turned)
    assert one.identity() == other.identity()
    with_adapters = [["learner.lora_rank=8", *more] for more in ([], ["learner.lora_alpha=8"], ['learner.lora_targets=["linear_qkv"]'])]
    assert len({load_config(file, changes).identity_digest for changes in (*with_adapters, ["learner.lora_rank=4"], [])}) == 5
    assert load_config(file, ["learner.lora_alpha=8"]).identity_digest == load_config(file).identity_digest


def test_a_setting_below_a_plain_value_is_refused(file: Path) -> None:
    assert "learner is not a section" in sentence(file, "", "learner=3", "learner.steps=3")


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("[learner]\nstepps = 3\n", "unknown key learner.stepps: did you mean learner.steps?"),
        ("[learner]\nsteps = 3\nsteps = 4\n", "is not valid TOML"),
        ("nonsense", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(file: Path, addition: str, expected: str) -> None:
    assert expected in sentence(file, addition)


def test_a_missing_file_or_key_is_one_sentence(file: Path, tmp_path: Path) -> None:
    assert "there is no configuration file" in sentence_of_missing(tmp_path / "none.toml")
    assert "cannot read" in sentence_of_missing(tmp_path)
    file.write_text(SOUND.replace('name = "first"\n', ""))
    assert sentence(file) == "missing key run.name: add it to the configuration"


def sentence_of_missing(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    return str(caught.value)


def test_several_mistakes_are_told_at_once(file: Path) -> None:
    told = sentence(file, "", "learner.step=3", "loss.knd=3")
    assert "learner.steps?" in told
    assert "loss.kind?" in told


def test_an_evaluation_needs_held_out_prompts() -> None:
    with pytest.raises(ConfigError, match=r"needs data\.eval_prompts"):
        parse_config(values(evaluation={"prompts": 10}))


def test_a_window_that_cannot_fit_on_the_bus_is_refused() -> None:
    sections = {"learner": {"batch_size": 64, "max_staleness": 3}, "sampling": {"max_new_tokens": 1000}, "bus": {"max_bytes": 30_000_000}}
    with pytest.raises(ConfigError, match=r"= 256 of the longest samples need \d+ bytes, more than bus\.max_bytes = 1000000: raise bus"):
        parse_config(values(**{**sections, "bus": {"max_bytes": 1_000_000}}))
    config = parse_config(values(**sections))
    assert config.window == 256
    assert config.window * config.largest_sample_bytes <= 30_000_000


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (3, {"tensor_parallel": 2}),
        (3, {"pipeline_parallel": 2}),
        (3, {"context_parallel": 2}),
        (6, {"tensor_parallel": 2, "pipeline_parallel": 2}),
        (6, {"tensor_parallel": 2, "context_parallel": 2}),
    ],
)
def test_ranks_that_cannot_be_divided_into_groups_are_refused(ranks: int, layout: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"learner\.ranks = {ranks} processes cannot be divided .* make ranks a multiple of it"):
        parse_config(values(learner={"ranks": ranks, **layout}))


def test_experts_that_the_ranks_of_a_stage_cannot_share_are_refused() -> None:
    parse_config(values(learner={"ranks": 8, "pipeline_parallel": 2, "expert_parallel": 4}))
    with pytest.raises(ConfigError, match=r"learner\.expert_parallel = 4 cannot divide the 2 ranks of a stage .* a multiple of it"):
        parse_config(values(learner={"ranks": 4, "pipeline_parallel": 2, "expert_parallel": 4}))


def test_sequence_parallel_without_tensor_parallel_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set learner\.tensor_parallel too"):
        parse_config(values(learner={"sequence_parallel": True}))


def test_the_largest_sample_bounds_what_the_codec_makes() -> None:
    import numpy as np

    from common.codec import encode
    from common.messages import Completion, Rollout, Sampling, ScoredRollout, Span, TeacherScore, TeacherShare, Ticket, Version

    teachers = {"a": {"path": "/a", "top_k": 8}, "b": {"path": "/b", "top_k": 0}}
    config = parse_config(values(teachers=teachers, sampling={"max_new_tokens": 300}, loss={"kind": "sampled_reverse_kl"}))
    prompt, tokens = config.data.max_prompt_tokens, 300
    slip = (TeacherShare("a", 0.5), TeacherShare("b", 0.5))
    ticket = Ticket(1, 0, "1", np.zeros(prompt, np.int32), Sampling(1.0, tokens, (2,)), slip, Version(1, 0))
    floats = np.zeros(tokens, np.float32)
    completion = Completion(np.zeros(tokens, np.int32), floats, tuple(Span(1, n, tokens // 5, True) for n in range(5)), "length")
    tops = (np.zeros((tokens, 8), np.int32), np.zeros((tokens, 8), np.float32))
    scores = (TeacherScore("a", "d" * 64, floats, *tops), TeacherScore("b", "d" * 64, floats))
    size = len(encode(ScoredRollout(Rollout(ticket, completion), scores)))
    assert size <= config.largest_sample_bytes < 1.5 * size


@pytest.mark.parametrize(
    "override", ["model.dtype=bfloat16", "run.seed=2", "loss.clip=0.3", "teachers.maths.weight=2.0", "optimizer.lr=1.0"]
)
def test_what_the_run_computes_is_its_identity(file: Path, override: str) -> None:
    assert load_config(file, [override]).identity_digest != load_config(file).identity_digest


@pytest.mark.parametrize(
    "override",
    ["producer.count=3", "bus.url=redis://host", "learner.micro_batch_tokens=9", "teachers.maths.deadline_s=9", "run.dir=/elsewhere"],
)
def test_where_and_how_fast_it_runs_is_not(file: Path, override: str) -> None:
    assert load_config(file, [override]).identity() == load_config(file).identity()


def test_identity_is_plain_json_without_operational_sections(file: Path) -> None:
    import json

    identity = load_config(file).identity()
    assert json.loads(json.dumps(identity)) == json.loads(json.dumps(identity, sort_keys=True))
    assert identity["learner"]["max_staleness"] == 4
    assert not {"bus", "producer", "scorer", "service"} & identity.keys()


def test_every_key_has_a_description() -> None:
    def silent(model: type[BaseModel], prefix: str = "") -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            inner = info.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += silent(inner, f"{prefix}{name}.")
            elif not info.description:
                found.append(prefix + name)
        return found

    assert silent(RunConfig) + silent(TeacherSection) == []


def test_a_configuration_is_frozen() -> None:
    section = LearnerSection()
    with pytest.raises(ValidationError, match="frozen"):
        section.steps = 3  # type: ignore[misc]
