"""A micro-batch as tensors: packed tokens, the rows that train, and what the teachers said of them.

Guarantees: token j of a response is predicted from the hidden row of the token before it, so only the rows P-1 .. P+T-2 of a
sample that train reach the output layer; rows keep the order of samples and tokens; an empty micro-batch has one token and
no rows, so that a rank without work still takes part in every collective. A context-parallel rank has its share of the tokens of every
sample, and the rows among them: what a row needs of response and teachers is there with it.

Shapes: N packed tokens, R trained tokens, K teacher's top-k, M = 1 + all teachers' K; a view covers Q of the R rows.
"""

# ruff: noqa: N815 - tensor names carry shape letters
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from learner.megatron.architecture import Architecture
from learner.megatron.attention import Block, Context, PackedSequences
from learner.megatron.context import Holding, holding, order_of_all
from learner.megatron.packing import alike
from learner.training import TeacherTargets, TrainingSample

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TeacherView:
    """One target of each of Q rows. Teachers are numbered in `MicroBatch.teachers`."""

    rows_Q: torch.Tensor | None  # int64; None: all rows
    teacher_Q: torch.Tensor  # int64
    weight_Q: torch.Tensor
    logp_Q: torch.Tensor
    columns: slice | None  # of ids_RM; None: this teacher gave no top-k
    top_logp_QK: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Everything one forward and backward pass needs, on the device of the model."""

    input_ids_1N: torch.Tensor
    packed: PackedSequences
    trained: int  # R; the empty micro-batch has a row in `packed` all the same
    ids_RM: torch.Tensor  # the sampled id, then every view's top ids
    behaviour_R: torch.Tensor
    lag_R: torch.Tensor
    position_R: torch.Tensor
    teachers: tuple[str, ...]
    views: tuple[TeacherView, ...]


class Packer:
    """Makes micro-batches; keeps the rotary tables, which grow to the longest sequence seen."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        tensor_parallel: int,
        multiple: int = 1,
        context: dist.ProcessGroup | None = None,
        masks: bool = True,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._frequencies = architecture.rope.frequencies(architecture.head_dim)
        self._device = device
        self._dtype = dtype
        self._heads = architecture.heads // tensor_parallel
        self._multiple = multiple  # of which N must be one: sequence parallelism divides the tokens
        self._group = context
        self._context = (context.rank(), context.size()) if context is not None else (0, 1)
        self._masks = masks  # whether attention is ours, and needs to be told what a query sees of other ranks' keys
        self._cos = self._sin = torch.empty(0, architecture.head_dim, dtype=dtype, device=device)

    def pack(self, samples: Sequence[TrainingSample], *, targets: bool = True) -> MicroBatch:
        """Pack the samples in the order given; none at all makes the empty micro-batch. `targets`: with what the teachers said of them."""
        assert all(len(sample.prompt_ids) and sample.targets for sample in samples), "no prompt or no teacher"
        lengths = [sample.length for sample in samples] or [1]
        held = holding(lengths, *self._context)
        while held.source_n.size % self._multiple:
            lengths.append(1)
            held = holding(lengths, *self._context)
        tokens = [ids for sample in samples for ids in (sample.prompt_ids, sample.response_ids)]
        tokens.append(np.zeros(sum(lengths) + 1 - sum(sample.length for sample in samples), np.int32))
        if self._context[1] > 1:
            samples = _with_rows_here(samples, held)
        starts, rows = _rows(samples)
        ids, views, teachers = [_joined([s.response_ids for s in samples])[rows.keep, None]], [], _teachers(samples)
        for view in _views(samples, rows) if targets else ():
            first = sum(part.shape[1] for part in ids)
            ids += [] if view.top_ids is None else [view.top_ids]
            views.append(self._view(view, teachers, slice(first, sum(part.shape[1] for part in ids))))
        return MicroBatch(
            input_ids_1N=self._put(np.concatenate(tokens)[held.source_n][None], np.int64),
            packed=self._sequences(lengths, held, held.home_N[starts + rows.position]),
            trained=rows.position.size,
            ids_RM=self._put(np.concatenate(ids, 1), np.int64),
            behaviour_R=self._put(_joined([s.behaviour_T for s in samples])[rows.keep], np.float32),
            lag_R=self._put(_joined([s.lag_T for s in samples])[rows.keep], np.int32),
            position_R=self._put(rows.position, np.int32),
            teachers=teachers,
            views=tuple(views),
        )

    def _view(self, view: _View, teachers: tuple[str, ...], columns: slice) -> TeacherView:
        number = {teacher: index for index, teacher in enumerate(teachers)}
        numbers = [number[target.teacher] for target in view.targets]
        return TeacherView(
            rows_Q=None if view.rows is None else self._put(view.rows, np.int64),
            teacher_Q=self._put(np.repeat(numbers, view.counts), np.int64),
            weight_Q=self._put(np.repeat([target.weight for target in view.targets], view.counts), np.float32),
            logp_Q=self._put(view.logp, np.float32),
            columns=None if view.top_ids is None else columns,
            top_logp_QK=None if view.top_logp is None else self._put(view.top_logp, np.float32),
        )

    def _sequences(self, lengths: list[int], held: Holding, rows: _Array) -> PackedSequences:
        position = self._put(held.position_n, np.int64)
        ends = self._put(np.concatenate([[0], np.cumsum(held.whole_B)]), np.int32)
        longest = int(held.whole_B.max())
        self._grow(longest)
        groups = alike(held.whole_B.tolist())
        blocks = tuple(self._block(held.held_B[members]) for members in groups)
        whole = ends if self._group is not None else None
        return PackedSequences(
            qkv_format="thd",
            cu_seqlens_q=ends,
            cu_seqlens_kv=ends,
            cu_seqlens_q_padded=whole,
            cu_seqlens_kv_padded=whole,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            blocks=blocks,
            cos_NAD=self._for_all_heads(self._cos, position),
            sin_NAD=self._for_all_heads(self._sin, position),
            rows_R=self._put(rows if rows.size else np.zeros(1), np.int64),
            context=self._others(lengths, held, groups, blocks) if self._group is not None and self._masks else None,
        )

    def _others(self, lengths: list[int], held: Holding, groups: list[slice], blocks: tuple[Block, ...]) -> Context:
        """What the queries here see of the keys of all ranks."""
        assert self._group is not None
        parts = torch.split(self._put(held.position_n, np.int64), [block.tokens for block in blocks])
        keys = [torch.arange(int(held.whole_B[members].max()), device=self._device) for members in groups]
        return Context(
            group=self._group,
            order_M=self._put(order_of_all(lengths, self._context[1]), np.int64),
            blocks=tuple(self._block(held.whole_B[members]) for members in groups),
            seen_B1SK=tuple(
                key_K <= position_n[block.token_BS].view(block.batch, 1, -1, 1)
                for block, position_n, key_K in zip(blocks, parts, keys, strict=True)
            ),
        )

    def _block(self, length_B: _Array) -> Block:
        longest, ends_B = int(length_B.max()), np.cumsum(length_B)
        starts_B = ends_B - length_B
        first_slot_B = np.arange(len(length_B)) * longest
        token_BS = starts_B[:, None] + np.minimum(np.arange(longest), length_B[:, None] - 1)
        slot_n = np.arange(ends_B[-1]) + np.repeat(first_slot_B - starts_B, length_B)
        return Block(
            batch=len(length_B),
            tokens=int(ends_B[-1]),
            token_BS=self._put(token_BS.ravel(), np.int64),
            slot_n=self._put(slot_n, np.int64),
        )

    def _grow(self, longest: int) -> None:
        if longest > self._cos.shape[0]:
            angle = torch.outer(torch.arange(2 * longest, dtype=torch.float32), self._frequencies)
            cos, sin = angle.cos(), angle.sin()
            self._cos = torch.cat((cos, cos), 1).to(self._device, self._dtype)
            self._sin = torch.cat((-sin, sin), 1).to(self._device, self._dtype)

    def _for_all_heads(self, table: torch.Tensor, position_N: torch.Tensor) -> torch.Tensor:
        return table.index_select(0, position_N).unsqueeze(1).expand(-1, self._heads, -1).flatten(1)

    def _put(self, array: _Array, dtype: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(self._device)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which of all response tokens train (`keep`), how many in each sample, and their index in the response."""

    keep: npt.NDArray[np.bool_]
    counts: list[int]
    position: _Array


@dataclass(frozen=True, slots=True)
class _View:
    """The j-th target of every sample that has one, on the rows that train."""

    targets: list[TeacherTargets]
    counts: list[int]
    rows: _Array | None
    logp: _Array
    top_ids: _Array | None  # [R, K], zero outside the view's rows
    top_logp: _Array | None


def _rows(samples: Sequence[TrainingSample]) -> tuple[_Array, _Rows]:
    """For every trained token: the packed row of the last prompt token of its sample; and where it lies."""
    keep = _joined([sample.mask_T for sample in samples]).astype(np.bool_)
    responses = [len(sample.response_ids) for sample in samples]
    before = np.cumsum([0, *responses])[:-1][: len(samples)]
    position = np.arange(keep.size) - np.repeat(before, responses)
    ends = np.cumsum([sample.length for sample in samples])
    starts = np.repeat(ends - responses - 1, responses)
    return starts[keep].astype(np.int64), _Rows(keep, [sample.trained for sample in samples], position[keep])


def _with_rows_here(samples: Sequence[TrainingSample], held: Holding) -> list[TrainingSample]:
    """The samples with only those tokens trained whose hidden row is on this rank."""
    ends = np.cumsum([sample.length for sample in samples])
    return [
        replace(sample, mask_T=np.asarray(sample.mask_T, np.bool_) & (held.home_N[end - len(sample.response_ids) - 1 : end - 1] >= 0))
        for sample, end in zip(samples, ends, strict=True)
    ]


def _views(samples: Sequence[TrainingSample], rows: _Rows) -> Iterator[_View]:
    """One view for each place in `targets` and each size of top-k that occurs there."""
    for place in range(max((len(sample.targets) for sample in samples), default=0)):
        sizes = [_top_k(sample.targets[place]) if place < len(sample.targets) else -1 for sample in samples]
        for size in sorted(set(sizes) - {-1}):
            yield _gather(samples, rows, place, [index for index, found in enumerate(sizes) if found == size])


def _gather(samples: Sequence[TrainingSample], rows: _Rows, place: int, members: list[int]) -> _View:
    targets = [samples[index].targets[place] for index in members]
    everyone = len(members) == len(samples)
    chosen = np.zeros(len(samples), np.bool_)
    chosen[members] = True
    keep = rows.keep if everyone else rows.keep[np.repeat(chosen, [len(s.response_ids) for s in samples])]
    at = None if everyone else np.flatnonzero(np.repeat(chosen, rows.counts))
    logp = np.concatenate([target.logprobs_T for target in targets])[keep]
    counts = [rows.counts[index] for index in members]
    if targets[0].top_ids_TK is None:
        return _View(targets, counts, at, logp, None, None)
    top_ids = np.concatenate([target.top_ids_TK for target in targets if target.top_ids_TK is not None])[keep]
    if at is not None:
        spread = np.zeros((sum(rows.counts), top_ids.shape[1]), top_ids.dtype)
        spread[at] = top_ids
        top_ids = spread
    top_logp = np.concatenate([t.top_logprobs_TK for t in targets if t.top_logprobs_TK is not None])[keep]
    return _View(targets, counts, at, logp, top_ids, top_logp)


def _top_k(target: TeacherTargets) -> int:
    return 0 if target.top_ids_TK is None else target.top_ids_TK.shape[1]


def _teachers(samples: Sequence[TrainingSample]) -> tuple[str, ...]:
    return tuple(sorted({target.teacher for sample in samples for target in sample.targets}))


def _joined(arrays: Sequence[_Array]) -> _Array:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
