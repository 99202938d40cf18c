"""What the example's scripts share: batches, the loss on answers, a batched sampler and pass@1 at temperature 1.

It is deliberately independent of Reflux, so that the baseline and the example's own figures do not lean on what they
are compared with. Shapes: B sequences, T tokens, V vocabulary.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from task import MAX_NEW_TOKENS, last_number
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

Batch = tuple[Tensor, Tensor]
"""Token ids and labels, both [B, T]."""
Model = Any  # transformers' models and tokenizers carry no annotations that mypy sees
Tokenizer = Any
IGNORED = -100
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


def run_alone_on_one_thread() -> None:
    """Starts the script again with glibc's allocator keeping its pages (about a fifth faster), then takes one thread."""
    if not MALLOC.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**MALLOC, **os.environ})
    torch.set_num_threads(1)


def load(folder: Path) -> Model:
    """A saved model in float32, whatever it was saved in."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_tokenizer(folder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(folder)


def encode_batch(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Batch:
    """Right-padded; only the answer and its end token are labels."""
    encoded = [(tokenizer(prompt).input_ids, tokenizer(answer).input_ids) for prompt, answer in pairs]
    longest = max(len(prompt) + len(answer) for prompt, answer in encoded) + 1
    ids_BT = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels_BT = torch.full((len(pairs), longest), IGNORED)
    for row, (prompt, answer) in enumerate(encoded):
        whole = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        ids_BT[row, : len(whole)] = whole
        labels_BT[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    return ids_BT, labels_BT


def answer_loss(model: Model, batch: Batch) -> Tensor:
    """Mean cross-entropy per answer token. Right padding needs no mask under causal attention."""
    ids_BT, labels_BT = batch
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    return cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)


def shuffled_batches(rng: Random, whole: Batch, size: int) -> Iterator[Batch]:
    """Batches for ever: a new order each epoch, the last batch of an epoch as short as it falls."""
    ids_NT, labels_NT = whole
    while True:
        order = list(range(len(ids_NT)))
        rng.shuffle(order)
        for start in range(0, len(order), size):
            rows = torch.tensor(order[start : start + size])
            yield ids_NT[rows], labels_NT[rows]


def train_step(optimizers: Sequence[torch.optim.Optimizer], model: Model, batch: Batch) -> float:
    loss = answer_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


@torch.no_grad()
def sample(model: Model, tokenizer: Tokenizer, prompts: Sequence[str], seed: int) -> list[str]:
    """One answer per prompt, drawn at temperature 1 from the whole vocabulary; unfinished after MAX_NEW_TOKENS: cut."""
    batch = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    generator = torch.Generator().manual_seed(seed)
    attend_BT, column_B1 = batch.attention_mask, batch.input_ids
    position_BT = (attend_BT.cumsum(1) - 1).clamp_min(0)
    cache, alive_B = None, torch.ones(len(prompts), dtype=torch.bool)
    drawn: list[Tensor] = []
    while alive_B.any() and len(drawn) < MAX_NEW_TOKENS:
        output = model(input_ids=column_B1, attention_mask=attend_BT, position_ids=position_BT, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        next_B1 = torch.multinomial(output.logits[:, -1].float().softmax(-1), 1, generator=generator)
        column_B1 = torch.where(alive_B[:, None], next_B1, tokenizer.pad_token_id)
        drawn.append(column_B1)
        alive_B &= column_B1[:, 0] != tokenizer.eos_token_id
        attend_BT = torch.cat([attend_BT, torch.ones_like(column_B1)], 1)
        position_BT = position_BT[:, -1:] + 1
    return list(tokenizer.batch_decode(torch.cat(drawn, 1), skip_special_tokens=True))


def pass_at_1(model: Model, tokenizer: Tokenizer, questions: Sequence[dict[str, str]], seed: int) -> float:
    """Share of questions whose one sampled answer ends in the right number."""
    model.eval()
    right = 0
    for start in range(0, len(questions), 256):
        part = questions[start : start + 256]
        answers = sample(model, tokenizer, [question["prompt"] for question in part], seed + start)
        right += sum(last_number(text) == question["answer"] for text, question in zip(answers, part, strict=True))
    return right / len(questions)
