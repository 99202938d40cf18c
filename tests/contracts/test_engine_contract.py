"""What every Engine promises its producer, run on every adapter. A new adapter adds itself to `adapter`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from stand_in import stand_in
from transformers import Qwen3Config, Qwen3ForCausalLM

from common.config import RunConfig
from common.errors import Rejected, WeightsError
from common.messages import Sampling, Span, Ticket, Version, WeightFile, WeightManifest
from common.pulse import Pulse
from common.weights.base import RawTensor
from common.weights.directory import DirectoryStore
from common.weights.tensorfile import map_tensors
from producers.engines import open_engine
from producers.engines.base import Engine

VOCABULARY, CONTEXT, SLOTS = 40, 2048, 4


class Adapter(Protocol):
    """What a test needs of an engine under test: it never stops by itself, has SLOTS slots and starts at version (0, 0)."""

    seeded: bool  # its draws depend on the run's seed and the ticket alone

    def open(self, seed: int = 1) -> AbstractAsyncContextManager[Engine]: ...

    def publish(self, version: Version) -> tuple[WeightManifest, Path]: ...


class TorchAdapter:
    """The embedded engine on a random student."""

    seeded = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._save(directory / "student", seed=0)

    @asynccontextmanager
    async def open(self, seed: int = 1) -> AsyncIterator[Engine]:
        async with self._opened({"kind": "torch"}, seed) as engine:
            yield engine

    @asynccontextmanager
    async def _opened(self, producer: dict[str, object], seed: int) -> AsyncIterator[Engine]:
        student = self._directory / "student"
        engine = open_engine(
            RunConfig.model_validate(
                {
                    "run": {"name": "contract", "seed": seed},
                    "model": {"student": student},
                    "teachers": {"one": {"path": student}},
                    "data": {"prompts": "none", "max_prompt_tokens": 32},
                    "sampling": {"max_new_tokens": 64},
                    "evaluation": {"prompts": 0},
                    "producer": {"slots": SLOTS, "refill_share": 0.25, **producer},
                }
            ),
            Pulse(),
        )
        try:
            yield engine
        finally:
            await engine.aclose()

    def publish(self, version: Version) -> tuple[WeightManifest, Path]:
        directory = self._directory / f"term{version.term}-step{version.step}"
        self._save(directory, seed=version.step)
        file = WeightFile("model.safetensors", (directory / "model.safetensors").stat().st_size, "")
        return WeightManifest(version, "full", directory.name, (file,), {}), directory

    def _save(self, directory: Path, seed: int) -> None:
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=48,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            tie_word_embeddings=True,
            max_position_embeddings=CONTEXT,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        Qwen3ForCausalLM(config).save_pretrained(directory)


class SglangAdapter(TorchAdapter):
    """The same student on two servers."""

    seeded = False

    @asynccontextmanager
    async def open(self, seed: int = 1) -> AsyncIterator[Engine]:
        student = self._directory / "student"
        async with (
            stand_in(student, slots=SLOTS) as one,
            stand_in(student, slots=SLOTS) as two,
            self._opened({"kind": "sglang", "urls": [one.url, two.url]}, seed) as engine,
        ):
            yield engine


@pytest.fixture(params=["torch", "sglang"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    match request.param:
        case "torch":
            return TorchAdapter(tmp_path)
        case "sglang":
            return SglangAdapter(tmp_path)
    raise AssertionError(request.param)


def ticket(seq: int, new: int, **fields: object) -> Ticket:
    prompt = np.random.default_rng(seq).integers(0, VOCABULARY, 3 + seq % 5).astype(np.int32)
    sampling = Sampling(temperature=1.0, max_new_tokens=new, stop_token_ids=())
    values = {"prompt_ids": prompt, "sampling": sampling, "attempt": 0, "metadata": {}, **fields}
    return Ticket(seq=seq, prompt_id=str(seq), slip=(), min_version=Version(0, 0), **values)


async def test_an_answer_has_ids_log_probabilities_and_versions_of_one_length(adapter: Adapter) -> None:
    async with adapter.open() as engine:
        assert engine.version == Version(0, 0)
        done = await asyncio.gather(*(engine.generate(ticket(seq, 3 + seq)) for seq in range(3 * SLOTS)))
    for seq, answer in enumerate(done):
        assert len(answer.response_ids) == len(answer.logprobs) == 3 + seq
        assert answer.response_ids.dtype == np.int32
        assert answer.logprobs.dtype == np.float32
        assert answer.versions == (Span(0, 0, 3 + seq, exact=True),)
        assert answer.finish_reason == "length"
        assert np.isfinite(answer.logprobs).all()
        assert (answer.logprobs <= 0).all()


async def test_a_stop_token_ends_the_answer_and_belongs_to_it(adapter: Adapter) -> None:
    stops = tuple(range(0, VOCABULARY, 4))
    sampling = Sampling(temperature=1.0, max_new_tokens=300, stop_token_ids=stops)
    async with adapter.open() as engine:
        answer = await engine.generate(ticket(1, 300, sampling=sampling))
    assert answer.finish_reason == "stop"
    assert answer.response_ids[-1] in stops
    assert not np.isin(answer.response_ids[:-1], stops).any()


async def test_a_draw_depends_on_seed_seq_attempt_and_evaluation_alone(adapter: Adapter) -> None:
    if not adapter.seeded:
        pytest.skip("servers draw as they like")
    prompt = np.array([3, 1, 4], np.int32)
    tickets = [
        ticket(1, 30, prompt_ids=prompt),
        ticket(2, 30, prompt_ids=prompt),
        ticket(1, 30, prompt_ids=prompt, attempt=1),
        ticket(1, 30, prompt_ids=prompt, metadata={"evaluation": "e"}),
    ]
    async with adapter.open() as engine:
        together = await asyncio.gather(*(engine.generate(each) for each in tickets))
        again = [await engine.generate(each) for each in reversed(tickets)]
    async with adapter.open(seed=2) as engine:
        other = await engine.generate(tickets[0])
    for one, two in zip(together, reversed(again), strict=True):
        np.testing.assert_array_equal(one.response_ids, two.response_ids)
    assert len({answer.response_ids.tobytes() for answer in [*together, other]}) == 5


async def test_a_late_ticket_is_answered_while_an_earlier_one_still_runs(adapter: Adapter) -> None:
    async with adapter.open() as engine:
        long = asyncio.create_task(engine.generate(ticket(1, 1500)))
        await engine.generate(ticket(2, 2))
        await engine.generate(ticket(3, 2))
        assert not long.done()
        assert len((await long).response_ids) == 1500


async def test_weights_change_between_two_tokens_and_no_request_is_lost(adapter: Adapter) -> None:
    manifest, directory = adapter.publish(Version(1, 7))
    async with adapter.open() as engine:
        running = [asyncio.create_task(engine.generate(ticket(seq, 2000))) for seq in range(SLOTS - 1)]
        await engine.generate(ticket(9, 3))
        await engine.update_weights(manifest, directory)
        assert engine.version == Version(1, 7)
        assert not any(task.done() for task in running)
        done = await asyncio.gather(*running)
        late = await engine.generate(ticket(5, 4))
    spans = [[(span.term, span.step) for span in answer.versions] for answer in done]
    assert [(0, 0), (1, 7)] in spans
    assert all(each in ([(0, 0), (1, 7)], [(1, 7)]) for each in spans), "a busy machine may start one after the update"
    for answer in done:
        assert all(span.tokens > 0 for span in answer.versions)
        assert sum(span.tokens for span in answer.versions) == 2000
    assert late.versions == (Span(1, 7, 4, exact=True),)


async def test_unusable_weights_are_refused_and_the_old_ones_go_on(adapter: Adapter) -> None:
    manifest, directory = adapter.publish(Version(1, 1))
    async with adapter.open() as engine:
        greedy = Sampling(temperature=0.0, max_new_tokens=10, stop_token_ids=())
        asked = ticket(1, 10, sampling=greedy, metadata={"evaluation": "e"})
        before = await engine.generate(asked)
        with pytest.raises(WeightsError):
            await engine.update_weights(manifest, directory / "absent")
        assert engine.version == Version(0, 0)
        after = await engine.generate(asked)
    np.testing.assert_array_equal(before.response_ids, after.response_ids)


async def test_weights_rebuilt_from_deltas_are_the_full_ones(adapter: Adapter, tmp_path: Path) -> None:
    tensors = map_tensors(adapter.publish(Version(1, 9))[1])
    deltas, full = (DirectoryStore(tmp_path / name, full_every=every) for name, every in (("deltas", 9), ("full", 1)))
    answers = []
    for step in range(3):
        tensors = {name: _a_little_other(tensor, step) for name, tensor in tensors.items()}
        published = [await store.put(Version(1, step), tensors) for store in (deltas, full)]
    assert [one.kind for one in published] == ["delta", "full"]
    for store, manifest in zip((deltas, full), published, strict=True):
        async with adapter.open() as engine:
            await engine.update_weights(manifest, await store.fetch(manifest))
            greedy = Sampling(temperature=0.0, max_new_tokens=30, stop_token_ids=())
            answers.append(await engine.generate(ticket(1, 30, sampling=greedy, metadata={"evaluation": "e"})))
    np.testing.assert_array_equal(answers[0].response_ids, answers[1].response_ids)
    np.testing.assert_array_equal(answers[0].logprobs, answers[1].logprobs)
    assert answers[0].versions == (Span(1, 2, 30, exact=True),)


def _a_little_other(tensor: RawTensor, step: int) -> RawTensor:
    values = np.frombuffer(tensor.buffer, np.float32).copy()
    values[step::50] += 0.25
    return RawTensor(tensor.dtype, tensor.shape, values.data)


async def test_a_ticket_that_cannot_be_sampled_is_rejected(adapter: Adapter) -> None:
    async with adapter.open() as engine:
        with pytest.raises(Rejected):
            await engine.generate(ticket(1, CONTEXT))
        with pytest.raises(Rejected):
            await engine.generate(ticket(1, 4, prompt_ids=np.array([1, VOCABULARY], np.int32)))
        assert len((await engine.generate(ticket(1, 4))).response_ids) == 4


async def test_wanted_falls_with_every_ticket_and_comes_back(adapter: Adapter) -> None:
    async with adapter.open() as engine:
        idle = engine.wanted
        assert idle >= SLOTS
        tasks = [asyncio.create_task(engine.generate(ticket(seq, 200))) for seq in range(3)]
        await asyncio.sleep(0)
        assert engine.wanted == idle - 3
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert engine.wanted == idle


async def test_closing_cancels_pending_requests(adapter: Adapter) -> None:
    async with adapter.open() as engine:
        tasks = [asyncio.create_task(engine.generate(ticket(seq, 1500))) for seq in range(2 * SLOTS)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
