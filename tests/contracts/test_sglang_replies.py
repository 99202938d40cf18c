"""The client's parser on what a real server answered, and what it makes of answers that are damaged."""

import copy
from typing import Any

import numpy as np
import pytest
from recorded import SHAPE, body_of, exchange, reply_of, request_of

from common.sglang.reply import BadReply, parse_sampled, parse_scores
from common.sglang.request import GenerateRequest

SCORES = ["score_lsl_0", "score_lsl_1", "score_lsl_4", "score_lsl_9", "score_top2", "score_flat", "score_flat_b64", "score_temp05"]
SCORES += ["router_score", "router_score_flat_b64"]
ANSWERS = ["gen_logprob", "gen_logprob_top2", "fin_stop_token2", "skip_tokenizer_gen", "pause_retract_spans", "pause_inplace_spans"]
FATAL = ["crash_oov_input_id", "crash_neg_input_id", "crash_lsl_minus2", "crash_top_gt_vocab", "crash_oov_stop_id"]


def recorded(name: str) -> tuple[Any, GenerateRequest]:
    return copy.deepcopy(reply_of(name)), request_of(body_of(name))


@pytest.mark.parametrize("name", SCORES)
def test_a_response_gets_one_log_probability_per_token(name: str) -> None:
    reply, request = recorded(name)
    scored = parse_scores(reply, request, SHAPE.vocabulary)
    entries = reply["meta_info"]["input_token_logprobs"]
    assert len(scored.logprobs) == len(request.ids) - request.logprob_start - 1
    np.testing.assert_array_equal(scored.logprobs, np.array([entry[0] for entry in entries[1:]], np.float32))
    assert scored.top_ids.shape == scored.top_logprobs.shape == (len(scored.logprobs), request.top)


def test_nested_flat_and_packed_top_ids_say_the_same() -> None:
    parsed = {}
    for name in ("score_top2", "score_flat", "score_flat_b64"):
        reply, request = recorded(name)
        scored = parse_scores(reply, request, SHAPE.vocabulary)
        parsed[name] = {
            request.logprob_start + 1 + row: (scored.top_ids[row].tolist(), scored.top_logprobs[row].tolist())
            for row in range(len(scored.logprobs))
        }
    assert parsed["score_flat"] == parsed["score_flat_b64"]
    assert parsed["score_flat"].items() <= parsed["score_top2"].items()
    assert parsed["score_flat"][7][0] == [20, 199]


def test_the_last_id_of_the_vocabulary_may_come_back_as_zero() -> None:
    reply, request = recorded("score_last_vocab_id")
    scored = parse_scores(reply, request, SHAPE.vocabulary)
    np.testing.assert_allclose(scored.logprobs[0], -7.164500713)
    reply["meta_info"]["input_token_logprobs"][1][1] = 511
    parse_scores(reply, request, SHAPE.vocabulary)
    reply["meta_info"]["input_token_logprobs"][2][1] = 0
    with pytest.raises(BadReply, match="scored id 0 at position 2, not 66"):
        parse_scores(reply, request, SHAPE.vocabulary)


@pytest.mark.parametrize("name", ["score_lsl_-1", "score_lsl_absent"])
def test_a_reply_without_prompt_log_probabilities_is_no_score(name: str) -> None:
    request = GenerateRequest(np.array(body_of(name)["input_ids"], np.int32), 0, logprob_start=4)
    with pytest.raises(BadReply, match="0 prompt log-probabilities came for 6 positions"):
        parse_scores(reply_of(name), request, SHAPE.vocabulary)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_has_the_ids_and_log_probabilities_that_were_sampled(name: str) -> None:
    reply, request = recorded(name)
    sampled = parse_sampled(reply, request, SHAPE.vocabulary)
    assert sampled.ids.tolist() == reply["output_ids"]
    assert sampled.finish == reply["meta_info"]["finish_reason"]["type"]
    assert (sampled.logprobs <= 0).all()
    assert sum(tokens for _, tokens in sampled.spans) == len(sampled.ids)


def test_the_spans_name_the_weights_of_every_token() -> None:
    reply, request = recorded("pause_retract_spans")
    assert parse_sampled(reply, request, SHAPE.vocabulary).spans == (("v4", 135), ("v5", 65))
    del reply["meta_info"]["weight_versions"]
    assert parse_sampled(reply, request, SHAPE.vocabulary).spans == ()


def test_an_answer_that_somebody_aborted_says_so() -> None:
    reply, request = recorded("abort_prefix_victim")
    assert parse_sampled(reply, request, SHAPE.vocabulary).finish == "abort"


def _without_last(meta: dict[str, Any]) -> None:
    meta["output_token_logprobs"].pop()


def _positive(meta: dict[str, Any]) -> None:
    meta["output_token_logprobs"][1][0] = 0.1


def _underflow(meta: dict[str, Any]) -> None:
    meta["output_token_logprobs"][1][0] = -3.4028234663852886e38


def _null(meta: dict[str, Any]) -> None:
    meta["output_token_logprobs"][1][0] = None


def _other_prompt(meta: dict[str, Any]) -> None:
    meta["prompt_tokens"] = 9


def _gap(meta: dict[str, Any]) -> None:
    meta["weight_versions"] = [{"version": "a", "start": 0, "end": 1}, {"version": "b", "start": 2, "end": 4}]


def _unknown_end(meta: dict[str, Any]) -> None:
    meta["finish_reason"] = {"type": "tired"}


@pytest.mark.parametrize("damage", [_without_last, _positive, _underflow, _null, _other_prompt, _gap, _unknown_end])
def test_a_damaged_answer_is_refused(damage: Any) -> None:
    reply, request = recorded("gen_logprob")
    damage(reply["meta_info"])
    with pytest.raises(BadReply):
        parse_sampled(reply, request, SHAPE.vocabulary)


@pytest.mark.parametrize("rows", [[3, 1], [2, 2], [3, 3]])
def test_top_ids_of_another_shape_are_refused(rows: list[int]) -> None:
    reply, request = recorded("score_flat_b64")
    reply["meta_info"]["input_top_logprobs_shape"] = rows
    with pytest.raises(BadReply):
        parse_scores(reply, request, SHAPE.vocabulary)


def test_a_top_id_outside_the_vocabulary_is_refused() -> None:
    reply, request = recorded("score_flat")
    reply["meta_info"]["input_top_logprobs_idx_flat"][3] = 512
    with pytest.raises(BadReply, match="outside the vocabulary"):
        parse_scores(reply, request, SHAPE.vocabulary)


@pytest.mark.parametrize("junk", [None, [], {}, {"meta_info": None}, {"meta_info": {}}, {"meta_info": {"input_token_logprobs": {}}}])
def test_junk_is_refused(junk: Any) -> None:
    _, request = recorded("score_lsl_4")
    with pytest.raises(BadReply):
        parse_scores(junk, request, SHAPE.vocabulary)
    _, request = recorded("gen_logprob")
    with pytest.raises(BadReply):
        parse_sampled(junk, request, SHAPE.vocabulary)


@pytest.mark.parametrize("name", FATAL)
def test_a_request_that_kills_the_server_is_refused_before_it_is_sent(name: str) -> None:
    assert exchange(name)["server_alive_after"] is False
    assert request_of(body_of(name)).refusal(SHAPE)


@pytest.mark.parametrize("name", ["score_lsl_11", "err_too_long", "crash_neg_max_new", "crash_top_negative", "err_empty_ids"])
def test_a_request_that_the_server_refuses_is_not_sent_either(name: str) -> None:
    body = body_of(name)
    assert request_of({**body, "sampling_params": body["sampling_params"] or {"max_new_tokens": 1}}).refusal(SHAPE)


@pytest.mark.parametrize("name", [*SCORES, *ANSWERS, "score_lsl_10", "score_last_vocab_id"])
def test_a_request_that_was_answered_is_sent_as_it_was(name: str) -> None:
    body = body_of(name)
    request = request_of(body)
    assert request.refusal(SHAPE) is None
    sent = request.body("rid")
    for key in ("input_ids", "return_logprob", "logprob_start_len", "top_logprobs_num"):
        assert sent.get(key) == body.get(key), key
    assert sent["sampling_params"].items() >= {k: v for k, v in body["sampling_params"].items() if k != "ignore_eos"}.items()


WRONG_DRAWS = [(1.0, 1, 1.0), (0.0, 0, 1.0), (1.0, -1, 1.0), (1.0, 0, -1.0), (1.0, 0, float("nan"))]


@pytest.mark.parametrize(("top_p", "top_k", "temperature"), WRONG_DRAWS)
def test_a_way_to_sample_that_servers_get_wrong_is_refused(top_p: float, top_k: int, temperature: float) -> None:
    request = GenerateRequest(np.array([1], np.int32), 4, temperature=temperature, top_p=top_p, top_k=top_k)
    assert request.refusal(SHAPE)
