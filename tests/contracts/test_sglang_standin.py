"""The stand-in does what a real SGLang 0.5.23 was recorded to do: same verdict on the same request, same shape of reply, same deaths."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
from recorded import body_of, exchange, reply_of, request_of
from stand_in import StandIn, stand_in
from transformers import Qwen3Config, Qwen3ForCausalLM

from common.sglang.reply import parse_sampled, parse_scores

SCORES = ["score_lsl_0", "score_lsl_4", "score_lsl_9", "score_lsl_10", "score_lsl_-1", "score_top2", "score_flat", "score_flat_b64"]
DECLINED = [
    "score_lsl_11", "err_too_long", "err_empty_ids", "err_no_input", "err_bad_sampling", "err_unknown_sampling",
    "err_oov_token_ids_logprob", "err_nested_token_ids_logprob", "crash_neg_max_new", "crash_null_in_ids", "crash_oov_logit_bias",
]  # fmt: skip
FATAL = ["crash_oov_input_id", "crash_neg_input_id", "crash_lsl_minus2", "crash_top_gt_vocab", "crash_oov_stop_id"]
LONG = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True}, "return_logprob": True}


def save(directory: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    torch.manual_seed(seed)
    shape = {"num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Qwen3Config(
        vocab_size=512, hidden_size=hidden, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **shape,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StandIn]:
    async with stand_in(save(tmp_path / "model")) as running:
        yield running


async def decoding(server: StandIn, count: int = 1) -> None:
    async with asyncio.timeout(60):
        while server.service.decoding < count:
            await asyncio.sleep(0.005)


def shape_of(value: Any) -> Any:
    """Without the numbers that depend on the weights."""
    if isinstance(value, dict):
        return {key: shape_of(one) for key, one in value.items()}
    return [shape_of(one) for one in value] if isinstance(value, list) else "number" if isinstance(value, float) else value


@pytest.mark.parametrize("name", SCORES)
async def test_a_score_has_the_recorded_shape(server: StandIn, name: str) -> None:
    status, reply = await server.post("/generate", body_of(name))
    assert status == 200
    recorded = reply_of(name)["meta_info"]
    ours = reply["meta_info"]
    flat = ("input_top_logprobs_shape", "input_top_logprobs_null_prefix")
    for key in ("input_token_logprobs", *flat, "finish_reason", "weight_versions", "prompt_tokens"):
        assert shape_of(ours.get(key)) == shape_of(recorded.get(key)), key
    assert {key for key in ours if "input" in key} == {key for key in recorded if "input" in key}


async def test_the_last_id_is_echoed_as_zero_as_the_real_one_does(server: StandIn) -> None:
    _, reply = await server.post("/generate", body_of("score_last_vocab_id"))
    echoed = [entry[1] for entry in reply["meta_info"]["input_token_logprobs"]]
    assert echoed == [entry[1] for entry in reply_of("score_last_vocab_id")["meta_info"]["input_token_logprobs"]]


@pytest.mark.parametrize("name", DECLINED)
async def test_what_the_real_server_declines_is_declined(server: StandIn, name: str) -> None:
    status, reply = await server.post("/generate", body_of(name))
    assert status == exchange(name)["response"]["status"] == 400
    assert reply.keys() == reply_of(name).keys()
    assert not server.dead.is_set()


@pytest.mark.parametrize("name", FATAL)
async def test_what_kills_the_real_server_kills_the_stand_in(server: StandIn, name: str) -> None:
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await server.post("/generate", body_of(name))
    assert server.dead.is_set()


async def test_an_answer_can_be_scored_again_to_the_same_log_probabilities(server: StandIn) -> None:
    asked = request_of({**LONG, "sampling_params": {"max_new_tokens": 40}})
    _, reply = await server.post("/generate", asked.body("r"))
    sampled = parse_sampled(reply, asked, 512)
    whole = {"input_ids": [5, 6, 7, *sampled.ids.tolist()], "sampling_params": {"max_new_tokens": 0}}
    body = {**whole, "return_logprob": True, "logprob_start_len": 2}
    _, reply = await server.post("/generate", body)
    np.testing.assert_allclose(parse_scores(reply, request_of(body), 512).logprobs, sampled.logprobs, atol=1e-4)


async def test_an_abort_matches_ids_by_their_beginning_and_gives_back_what_there_is(server: StandIn) -> None:
    jobs = [asyncio.create_task(server.post("/generate", {**LONG, "rid": rid})) for rid in ("job-1", "job-10", "other")]
    await decoding(server, 3)
    assert await server.post("/abort_request", {"rid": "unknown"}) == (200, "")
    await server.post("/abort_request", {"rid": "job-1"})
    for job in jobs[:2]:
        _, reply = await job
        assert reply["meta_info"]["finish_reason"] == reply_of("abort_prefix_victim")["meta_info"]["finish_reason"]
        assert 0 < len(reply["output_ids"]) < 1500
    assert not jobs[2].done()
    await server.post("/abort_request", {"abort_all": True})
    await jobs[2]


async def test_a_paused_server_says_nothing_until_it_goes_on(server: StandIn) -> None:
    assert await server.post("/pause_generation", {"mode": "retract"}) == (200, reply_of("pause_retract"))
    asked = asyncio.create_task(server.post("/generate", body_of("score_lsl_4")))
    done, _ = await asyncio.wait({asked}, timeout=0.3)
    assert not done
    status, info = await server.get("/model_info")
    assert (status, info["weight_version"]) == (200, "default")
    assert await server.post("/continue_generation", {}) == (200, reply_of("continue_retract"))
    assert (await asked)[0] == 200


async def test_weights_change_under_a_retracted_request_and_the_spans_tell(server: StandIn, tmp_path: Path) -> None:
    other = save(tmp_path / "other", seed=1)
    asked = asyncio.create_task(server.post("/generate", LONG))
    await decoding(server)
    await asyncio.sleep(0.1)
    await server.post("/pause_generation", {"mode": "retract"})
    status, reply = await server.post("/update_weights_from_disk", {"model_path": str(other), "weight_version": "v5"})
    assert (status, reply) == (200, reply_of("update_disk_retract"))
    await server.post("/continue_generation", {})
    meta = (await asked)[1]["meta_info"]
    old, new = meta["weight_versions"]
    assert (old["version"], new["version"], new["end"]) == ("default", "v5", 1500)
    assert meta["num_retractions"] == 1
    assert (await server.get("/model_info"))[1]["model_path"] == str(other)


async def test_without_a_pause_new_weights_wait_for_what_is_in_flight(server: StandIn, tmp_path: Path) -> None:
    other = save(tmp_path / "other", seed=1)
    asked = asyncio.create_task(server.post("/generate", {**LONG, "sampling_params": {"max_new_tokens": 200}}))
    await decoding(server)
    await server.post("/update_weights_from_disk", {"model_path": str(other), "weight_version": "v1"})
    assert asked.done() or server.service.decoding == 0
    assert [span["version"] for span in (await asked)[1]["meta_info"]["weight_versions"]] == ["default"]


async def test_no_weights_are_told_and_foreign_ones_kill(server: StandIn, tmp_path: Path) -> None:
    status, reply = await server.post("/update_weights_from_disk", {"model_path": str(tmp_path / "nope"), "weight_version": "v"})
    assert (status, reply["success"], reply.keys()) == (400, False, reply_of("update_disk_badpath").keys())
    assert (await server.get("/model_info"))[1]["weight_version"] == "default"
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await server.post("/update_weights_from_disk", {"model_path": str(save(tmp_path / "wide", hidden=48))})
    assert server.dead.is_set()


async def test_each_key_opens_its_own_endpoints(tmp_path: Path) -> None:
    async with stand_in(save(tmp_path / "model"), api_key="user-key", admin_key="admin-key") as server:
        body = body_of("auth_user_generate")
        for key, path, status in [
            ("", "/generate", 401), ("admin-key", "/generate", 401), ("user-key", "/generate", 200),
            ("user-key", "/flush_cache", 401), ("admin-key", "/flush_cache", 200), ("user-key", "/abort_request", 401),
        ]:  # fmt: skip
            assert (await server.post(path, body, key))[0] == status, (key, path)
        assert (await server.get("/model_info"))[0] == 401
        assert (await server.get("/ready"))[0] == 200


async def test_a_full_queue_is_a_503(tmp_path: Path) -> None:
    async with stand_in(save(tmp_path / "model"), slots=1, most_queued=1) as server:
        jobs = [asyncio.create_task(server.post("/generate", LONG))]
        await decoding(server)
        jobs.append(asyncio.create_task(server.post("/generate", LONG)))
        async with asyncio.timeout(60):
            while not server.service._queue:
                await asyncio.sleep(0.005)
        assert await server.post("/generate", LONG) == (503, reply_of("queue_full"))
        await server.post("/abort_request", {"abort_all": True})
        await asyncio.gather(*jobs)


def test_the_command_serves_until_a_request_kills_the_whole_process(tmp_path: Path) -> None:
    import urllib.request

    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "deploy.sglang_standin", "--model", str(save(tmp_path / "model")), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert b"default" in urllib.request.urlopen(f"{url}/model_info", timeout=60).read()
        body = b'{"input_ids": [512], "sampling_params": {"max_new_tokens": 1}}'
        with pytest.raises(OSError, match=r"closed|reset"):
            urllib.request.urlopen(urllib.request.Request(f"{url}/generate", data=body), timeout=60)
        assert process.wait(60) != 0
