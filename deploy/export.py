"""The surviving line's rollouts as one Parquet file, from the journal alone: text for people, ids and numbers as they were trained.

One row per trained sample, in the order of training. `versions` are the spans of the weights that sampled it; `scores` what each teacher
said of the sampled tokens. Raises ConfigError where there is nothing to export.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any  # rows for pyarrow, and transformers' tokenizer

import pyarrow as pa
from pyarrow import parquet

from common.codec import decode
from common.config import RunConfig
from common.errors import ConfigError
from common.messages import ScoredRollout, StepRecord
from learner.directory import RunDirectory
from learner.surviving import surviving_records

_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
_SPAN = pa.struct([("term", pa.int64()), ("step", pa.int64()), ("tokens", pa.int32()), ("exact", pa.bool_())])
_SCORE = pa.struct([("teacher", pa.string()), ("digest", pa.string()), ("logprobs", _FLOATS)])
_COLUMNS: list[tuple[str, Any]] = [
    ("term", pa.int64()),
    ("step", pa.int64()),
    ("seq", pa.int64()),
    ("attempt", pa.int32()),
    ("prompt_id", pa.string()),
    ("prompt", pa.string()),
    ("response", pa.string()),
    ("finish_reason", pa.string()),
    ("prompt_ids", _IDS),
    ("response_ids", _IDS),
    ("logprobs", _FLOATS),
    ("versions", pa.list_(_SPAN)),
    ("scores", pa.list_(_SCORE)),
    ("metadata", pa.map_(pa.string(), pa.string())),
]
SCHEMA = pa.schema(_COLUMNS)


def export_rollouts(config: RunConfig, out: Path) -> int:
    """Writes `out`; returns the number of rows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model.student, local_files_only=True, trust_remote_code=False)
    count = 0
    temporary = out.with_name(f".{out.name}.tmp")
    with _writer(temporary) as writer:
        for record in surviving_records(RunDirectory(config.directory)):
            rows = [_row(record, payload, tokenizer) for payload in record.payloads]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            count += len(rows)
    if not count:
        temporary.unlink()
        raise ConfigError(f"{config.directory} has no journaled steps yet: let the run take one (and keep learner.record = true)")
    temporary.replace(out)
    return count


def _writer(file: Path) -> parquet.ParquetWriter:
    try:
        return parquet.ParquetWriter(file, SCHEMA)
    except OSError as error:
        raise ConfigError(f"cannot write {file.parent} ({error.strerror or error}): name another file with --out") from None


def _row(record: StepRecord, payload: bytes | memoryview, tokenizer: Any) -> dict[str, Any]:
    scored = decode(payload, ScoredRollout)
    assert isinstance(scored, ScoredRollout)
    ticket, completion = scored.rollout.ticket, scored.rollout.completion
    return {
        "term": record.term,
        "step": record.step,
        "seq": ticket.seq,
        "attempt": ticket.attempt,
        "prompt_id": ticket.prompt_id,
        "prompt": tokenizer.decode(ticket.prompt_ids, skip_special_tokens=False),
        "response": tokenizer.decode(completion.response_ids, skip_special_tokens=True),
        "finish_reason": completion.finish_reason,
        "prompt_ids": ticket.prompt_ids,
        "response_ids": completion.response_ids,
        "logprobs": completion.logprobs,
        "versions": [span._asdict() for span in completion.versions],
        "scores": [{"teacher": score.teacher, "digest": score.digest, "logprobs": score.logprobs} for score in scored.scores],
        "metadata": list(ticket.metadata.items()),
    }
