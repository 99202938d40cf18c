from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from common.config import RunConfig
from common.messages import Sampling, TeacherShare, Version
from learner.prompts import Place, load_eval_prompts, load_prompts

Configured = Callable[..., RunConfig]
ROWS = [{"prompt": f"{n}+{n}="} for n in range(10)]
FIRST = Version(1, 0)
ORDER_OF_SEED_5 = [9, 2, 4, 3, 1, 5, 0, 6, 7, 8]


def test_a_ticket_carries_everything_a_producer_needs(configured: Configured) -> None:
    config = configured(
        [{"prompt": "1+2=", "teacher": ["maths", "prose"], "metadata": {"level": 3, "kind": "sum"}, "extra": 1}],
        teachers={"maths": {"path": "/a", "weight": 3.0}, "prose": {"path": "/b"}},
        sampling={"stop_token_ids": [40]},
    )
    ticket = load_prompts(config).ticket(0, 2, Version(3, 7))
    assert (ticket.seq, ticket.attempt, ticket.min_version) == (0, 2, (3, 7))
    assert ticket.prompt_ids.dtype == np.int32
    assert ticket.prompt_ids.tolist() == [4, 13, 5, 15]
    assert ticket.sampling == Sampling(1.0, 16, (2, 40))
    assert ticket.slip == (TeacherShare("maths", 0.75), TeacherShare("prose", 0.25))
    assert ticket.metadata == {"level": "3", "kind": "sum"}


def test_the_teachers_of_a_prompt_take_turns_in_being_first(configured: Configured) -> None:
    teachers = {name: {"path": "/t"} for name in ("a", "b", "c")}
    source = load_prompts(configured([{"prompt": "1", "teacher": ["a", "b", "c"]}], teachers=teachers))
    orders = ["".join(share.teacher for share in source.ticket(seq, 0, FIRST).slip) for seq in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_a_prompt_without_teacher_gets_the_only_one_or_default(configured: Configured) -> None:
    only = load_prompts(configured(ROWS, teachers={"sole": {"path": "/t"}}))
    several = load_prompts(configured(ROWS, teachers={"other": {"path": "/t"}, "default": {"path": "/t"}}))
    assert only.ticket(0, 0, FIRST).slip == (TeacherShare("sole", 1.0),)
    assert several.ticket(0, 0, FIRST).slip == (TeacherShare("default", 1.0),)


def test_every_epoch_has_every_prompt_once_in_another_order(configured: Configured) -> None:
    source = load_prompts(configured(ROWS))
    epochs = [[source.ticket(epoch * 10 + n, 0, FIRST).prompt_id for n in range(10)] for epoch in range(3)]
    assert all(sorted(epoch) == [str(n) for n in range(10)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_the_same_on_every_machine(configured: Configured) -> None:
    source = load_prompts(configured(ROWS, run={"seed": 5}))
    assert [source.place(seq).prompt for seq in range(10)] == ORDER_OF_SEED_5
    other = load_prompts(configured(ROWS, run={"seed": -5}))
    assert [other.place(seq).prompt for seq in range(10)] != ORDER_OF_SEED_5


def test_a_sequence_number_alone_says_epoch_prompt_and_sample(configured: Configured) -> None:
    source = load_prompts(configured(ROWS, data={"samples_per_prompt": 4, "shuffle": False}))
    assert [source.place(seq) for seq in (0, 3, 4, 39, 40, 125)] == [
        Place(0, 0, 0), Place(0, 0, 3), Place(0, 1, 0), Place(0, 9, 3), Place(1, 0, 0), Place(3, 1, 1)
    ]  # fmt: skip
    shuffled = load_prompts(configured(ROWS, data={"samples_per_prompt": 4}))
    backwards = {seq: shuffled.place(seq) for seq in reversed(range(200))}
    assert backwards == {seq: load_prompts(configured(ROWS, data={"samples_per_prompt": 4})).place(seq) for seq in range(200)}
    assert set(Counter(backwards.values()).values()) == {1}


def test_chats_are_rendered_with_the_students_template(configured: Configured) -> None:
    row = {"messages": [{"role": "user", "content": "1+1"}]}
    plain = {"prompt": "user: 1+1\nassistant: "}
    source = load_prompts(configured([row, plain], data={"shuffle": False}))
    assert source.ticket(0, 0, FIRST).prompt_ids.tolist() == source.ticket(1, 0, FIRST).prompt_ids.tolist()


def test_token_ids_are_taken_as_they_are(configured: Configured) -> None:
    source = load_prompts(configured([{"prompt": [5, 3, 2]}]))
    assert source.ticket(0, 0, FIRST).prompt_ids.tolist() == [5, 3, 2]


def test_twelve_thousand_prompts_are_ready_at_once(configured: Configured) -> None:
    load_prompts(configured(ROWS))  # transformers is loaded
    config = configured([{"prompt": f"{n}+{n + 1}=", "answer": n} for n in range(12_800)])
    started = time.process_time()
    source = load_prompts(config)
    loaded = time.process_time()
    tickets = [source.ticket(seq, 0, FIRST) for seq in range(12_800)]
    admitted = time.process_time()
    assert len({ticket.prompt_id for ticket in tickets}) == 12_800
    assert loaded - started < 20
    assert (admitted - loaded) / 12_800 < 500e-6


def test_an_evaluation_asks_the_first_prompts_for_each_of_their_answers(configured: Configured) -> None:
    config = configured([{"prompt": f"{n}=", "answer": n} for n in range(10)], evaluation={"prompts": 0})
    config = configured(
        data={"eval_prompts": config.data.prompts},
        evaluation={"prompts": 3, "samples_per_prompt": 2, "temperature": 0.0, "top_p": 0.5, "max_new_tokens": 8},
    )
    prompts = load_eval_prompts(config)
    tickets = prompts.tickets("before", Version(1, 4))
    assert len(prompts) == len(tickets) == 6
    assert [ticket.seq for ticket in tickets] == list(range(6))
    assert [ticket.metadata["answer"] for ticket in tickets] == ["0", "0", "1", "1", "2", "2"]
    assert {(ticket.metadata["evaluation"], ticket.min_version, ticket.slip, ticket.attempt) for ticket in tickets} == {
        ("before", (1, 4), (), 0)
    }
    assert tickets[0].sampling == Sampling(0.0, 8, (2,), 0.5)


def test_without_evaluation_there_are_no_eval_prompts(configured: Configured) -> None:
    prompts = load_eval_prompts(configured(ROWS))
    assert len(prompts) == 0
    assert prompts.tickets("before", FIRST) == []


@pytest.mark.parametrize("shuffle", [True, False])
def test_tickets_survive_the_codec(configured: Configured, shuffle: bool) -> None:
    from common.codec import decode, encode
    from common.messages import Ticket

    ticket = load_prompts(configured(ROWS, data={"shuffle": shuffle})).ticket(3, 1, FIRST)
    read = decode(encode(ticket), Ticket)
    assert isinstance(read, Ticket)
    assert (read.slip, read.sampling, read.prompt_id) == (ticket.slip, ticket.sampling, ticket.prompt_id)
