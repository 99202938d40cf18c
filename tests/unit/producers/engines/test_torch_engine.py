"""The torch engine as its callers see it: numbers, order, limits, bad input."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from common.config import RunConfig
from common.errors import ConfigError, Rejected
from common.messages import Completion, Sampling, Ticket, Version
from common.pulse import Pulse
from producers.engines import open_engine
from producers.engines.base import Engine
from producers.engines.torch.engine import TorchEngine

Configure = Callable[..., RunConfig]


def ticket(seq: int, new: int = 12, length: int | None = None, **fields: object) -> Ticket:
    prompt = np.random.default_rng(seq).integers(2, 61, length or 2 + seq % 9).astype(np.int32)
    shape = {key: fields.pop(key) for key in ("top_p", "top_k", "temperature", "stop_token_ids") if key in fields}
    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": new, "stop_token_ids": (), **shape})
    values = {"seq": seq, "attempt": 0, "prompt_id": str(seq), "slip": (), "min_version": Version(0, 0), **fields}
    return Ticket(prompt_ids=prompt, sampling=sampling, **values)


@asynccontextmanager
async def running(config: RunConfig) -> AsyncIterator[Engine]:
    engine = open_engine(config, Pulse())
    try:
        yield engine
    finally:
        await engine.aclose()


async def answers(config: RunConfig, tickets: list[Ticket]) -> dict[int, Completion]:
    async with running(config) as engine:
        done = await asyncio.gather(*(engine.generate(each) for each in tickets))
    return {each.seq: completion for each, completion in zip(tickets, done, strict=True)}


@cache
def eager(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def plain_logps(directory: Path, asked: Ticket, completion: Completion) -> torch.Tensor:
    """[T, V] of the eager forward pass over the whole sample."""
    model = eager(directory)
    ids = torch.from_numpy(np.concatenate([asked.prompt_ids, completion.response_ids])).long()
    with torch.inference_mode():
        logits = model(input_ids=ids[None]).logits[0, len(asked.prompt_ids) - 1 : -1]
    return logits / max(asked.sampling.temperature, 1e-9)


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "mistral", "gpt_neox"])
async def test_log_probabilities_are_those_of_a_plain_forward_pass(
    students: dict[str, Path], configure: Configure, architecture: str
) -> None:
    tickets = [ticket(seq, new=4 + 5 * (seq % 6)) for seq in range(20)]
    done = await answers(configure(students[architecture], slots=5), tickets)
    for each in tickets:
        completion = done[each.seq]
        expected = torch.log_softmax(plain_logps(students[architecture], each, completion), -1)
        taken = expected.gather(1, torch.from_numpy(completion.response_ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, taken.numpy(), atol=1e-4)
        assert completion.response_ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32


async def test_the_most_likely_ids_are_recorded_where_it_is_asked_for(configure: Configure, students: dict[str, Path]) -> None:
    tickets = [ticket(seq, new=4 + 5 * (seq % 6)) for seq in range(20)]
    asked = configure(students["qwen3"], slots=5)
    asked = asked.model_copy(update={"producer": asked.producer.model_copy(update={"record_top_k": 3})})
    done, plain = await answers(asked, tickets), await answers(configure(students["qwen3"], slots=5), tickets)
    for each in tickets:
        completion = done[each.seq]
        expected = torch.topk(torch.log_softmax(plain_logps(students["qwen3"], each, completion), -1), 3)
        np.testing.assert_allclose(completion.top_logprobs, expected.values.numpy(), atol=1e-4)
        assert (completion.top_ids == expected.indices.numpy()).mean() > 0.99  # but for ties
        np.testing.assert_array_equal(completion.response_ids, plain[each.seq].response_ids)
        assert plain[each.seq].top_ids is None


async def test_answers_that_follow_one_another_closely_are_told_together_and_none_is_kept_back(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    finished = TorchEngine.finished
    monkeypatch.setattr("producers.engines.torch.thread._GATHER_S", 3600.0)
    monkeypatch.setattr(TorchEngine, "finished", lambda engine, some: (told.append(len(some)), finished(engine, some)))
    tickets = [ticket(seq, new=4 + 3 * (seq % 7)) for seq in range(24)]
    done = await answers(configure(slots=5), tickets)
    assert len(done) == sum(told) == len(tickets)
    assert len(told) <= 2, "the first at once, the others when nothing is left to compute"


async def test_neither_order_nor_slot_count_changes_a_draw(configure: Configure) -> None:
    tickets = [ticket(seq, new=4 + 3 * (seq % 7)) for seq in range(24)]
    one = await answers(configure(slots=3), tickets)
    other = await answers(configure(slots=16, refill_share=0.5), tickets[::-1])
    for seq, completion in one.items():
        np.testing.assert_array_equal(completion.response_ids, other[seq].response_ids)
        np.testing.assert_allclose(completion.logprobs, other[seq].logprobs, atol=1e-5)


async def test_seed_attempt_and_evaluation_each_change_the_draw(configure: Configure) -> None:
    prompt = np.array([5, 9, 3], np.int32)
    same = {"prompt_ids": prompt}
    variants = [ticket(7, 30), ticket(7, 30, attempt=1), ticket(8, 30), ticket(7, 30, metadata={"evaluation": "e1"})]
    variants = [each._replace(**same) for each in variants]
    async with running(configure()) as engine:
        drawn = [tuple((await engine.generate(each)).response_ids) for each in variants]
    async with running(configure(seed=2)) as engine:
        drawn.append(tuple((await engine.generate(variants[0])).response_ids))
    assert len(set(drawn)) == len(variants) + 1


async def test_a_deterministic_run_repeats_every_bit_in_any_order_of_arrival(configure: Configure) -> None:
    tickets = [ticket(seq, new=3 + 4 * (seq % 7)) for seq in range(12)]
    config = configure(deterministic=True, slots=5)
    one, other = await answers(config, tickets), await answers(config, tickets[::-1])
    for seq, completion in one.items():
        assert completion.logprobs.tobytes() == other[seq].logprobs.tobytes()
        np.testing.assert_array_equal(completion.response_ids, other[seq].response_ids)


async def test_an_answer_ends_with_its_stop_token_or_at_its_limit(configure: Configure) -> None:
    free, stopping = ticket(3, new=30), ticket(3, new=30, stop_token_ids=tuple(range(0, 61, 3)))
    done = await answers(configure(), [free])
    stopped = (await answers(configure(), [stopping]))[3]
    ids = done[3].response_ids.tolist()
    end = next(place for place, each in enumerate(ids) if each % 3 == 0 or each == 1)
    assert stopped.response_ids.tolist() == ids[: end + 1]
    assert stopped.finish_reason == "stop"
    limited = (await answers(configure(), [ticket(3, new=1, stop_token_ids=())]))[3]
    assert limited.response_ids.tolist() == ids[:1]
    assert limited.finish_reason == ("stop" if ids[0] == 1 else "length")


async def test_the_models_own_end_of_sequence_id_stops(configure: Configure) -> None:
    done = await answers(configure(slots=16), [ticket(seq, new=40) for seq in range(60)])
    stopped = [each for each in done.values() if each.finish_reason == "stop"]
    assert stopped
    assert all(each.response_ids[-1] == 1 and 1 not in each.response_ids[:-1] for each in stopped)
    limited = [each for each in done.values() if each.finish_reason == "length"]
    assert limited
    assert all(len(each.response_ids) == 40 and 1 not in each.response_ids for each in limited)


async def test_temperature_and_cuts_show_in_the_log_probability(students: dict[str, Path], configure: Configure) -> None:
    shaped = [
        ticket(1, temperature=0.6),
        ticket(2, temperature=1.5, top_k=4),
        ticket(3, temperature=1.0, top_p=0.5),
        ticket(4, temperature=0.8, top_k=10, top_p=0.7),
        ticket(5),
        ticket(6, temperature=0.0),
    ]
    done = await answers(configure(slots=6), shaped)
    for each in shaped[:-1]:
        completion = done[each.seq]
        logits = plain_logps(students["qwen3"], each, completion)
        for row, (taken, logp) in enumerate(zip(completion.response_ids, completion.logprobs, strict=True)):
            assert abs(cut_logp(logits[row], each.sampling)[taken] - logp) < 1e-4
    logits = plain_logps(students["qwen3"], shaped[-1], done[6])
    np.testing.assert_array_equal(done[6].response_ids, logits.argmax(-1).numpy())
    np.testing.assert_array_equal(done[6].logprobs, np.zeros(len(done[6].logprobs), np.float32))


def cut_logp(logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """Straight from the definition, one row, float64."""
    p = torch.softmax(logits.double(), -1).numpy()
    order = np.argsort(-p, kind="stable")[: sampling.top_k or None]
    kept, mass = [], 0.0
    for each in order:
        if mass >= sampling.top_p * p[order].sum():
            break
        kept.append(each)
        mass += p[each]
    out = np.full(len(p), -np.inf)
    out[kept] = np.log(p[kept] / p[kept].sum())
    return out


async def test_tickets_that_cannot_be_sampled_are_rejected_with_the_reason(configure: Configure) -> None:
    async with running(configure()) as engine:
        with pytest.raises(Rejected, match="too long for the student's context of 512"):
            await engine.generate(ticket(1, new=510, length=3))
        outside = ticket(1)
        outside.prompt_ids[0] = 61
        with pytest.raises(Rejected, match="prompt id 61 is outside the student's vocabulary of 61"):
            await engine.generate(outside)
        outside.prompt_ids[0] = -2
        with pytest.raises(Rejected, match="prompt id -2"):
            await engine.generate(outside)
        assert len((await engine.generate(ticket(2, new=505, length=7, stop_token_ids=()))).response_ids) > 0


async def test_wanted_counts_what_is_here_and_a_cancelled_ticket_frees_its_place(configure: Configure) -> None:
    async with running(configure(slots=4, refill_share=0.5)) as engine:
        assert engine.wanted == 6
        tasks = [asyncio.create_task(engine.generate(ticket(seq, new=400))) for seq in range(8)]
        await asyncio.sleep(0)
        assert engine.wanted == -2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert engine.wanted == 6
        late = await asyncio.wait_for(engine.generate(ticket(9, new=3)), 60)
        assert 1 <= len(late.response_ids) <= 3


async def test_closing_cancels_what_is_pending(configure: Configure) -> None:
    engine = open_engine(configure(), Pulse())
    tasks = [asyncio.create_task(engine.generate(ticket(seq, new=400))) for seq in range(6)]
    await asyncio.sleep(0)
    await engine.aclose()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in results)


async def test_a_failure_of_the_maths_reaches_every_caller_now_and_later(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("out of memory")

    async with running(configure()) as engine:
        monkeypatch.setattr("producers.engines.torch.batch.sampler.draw", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            await engine.generate(ticket(1))
        with pytest.raises(RuntimeError, match="maths has stopped"):
            await engine.generate(ticket(2))


async def test_a_student_that_cannot_be_used_is_a_sentence(configure: Configure, tmp_path: Path, students: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="is no model directory"):
        open_engine(configure(tmp_path / "absent"), Pulse())
    BertForMaskedLM(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(ConfigError, match="not a causal language model"):
        open_engine(configure(tmp_path / "bert"), Pulse())
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text('{"model_type": "nobody-knows-it"}')
    with pytest.raises(ConfigError, match="unsupported architecture"):
        open_engine(configure(tmp_path / "odd"), Pulse())
    shutil.copytree(students["qwen3"], tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_engine(configure(tmp_path / "broken"), Pulse())


async def test_an_architecture_that_does_not_go_through_the_slots_is_refused(students: dict[str, Path], configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"does not support the architecture Gemma2ForCausalLM \(attention with softcap\)"):
        open_engine(configure(students["gemma2"]), Pulse())


async def test_a_sliding_window_bounds_the_sample(students: dict[str, Path], configure: Configure) -> None:
    async with running(configure(students["mistral"])) as engine:
        with pytest.raises(Rejected, match="context of 100"):
            await engine.generate(ticket(1, new=98, length=3))


async def test_a_bfloat16_engine_runs(configure: Configure) -> None:
    done = await answers(configure(dtype="bfloat16"), [ticket(seq) for seq in range(6)])
    assert all(np.isfinite(each.logprobs).all() and (each.logprobs <= 0).all() for each in done.values())
