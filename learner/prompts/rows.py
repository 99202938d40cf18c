"""Rows of a prompts file as plain dictionaries, each with its place for error messages, and the fingerprint of the bytes they came from.

A source is a .jsonl or .parquet file, a directory of them (read in the order of their names), or `datasets:PATH[:SPLIT]`, for which the
fingerprint is taken over the rows themselves because the library keeps them in files of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple  # Any: what people write into prompts files

from common.errors import ConfigError

FIELDS = ("prompt", "messages", "answer", "teacher", "metadata")
_AT_ONCE = 1024
"""Rows of a Parquet file: the reader makes room for as many as the file claims to have."""


class Row(NamedTuple):
    """One row; only fields that are known and not null."""

    where: str
    fields: dict[str, Any]


def read_rows(source: str, key: str) -> tuple[list[Row], str]:
    """All rows of `source` and its fingerprint; `key` is the configuration key to blame. Raises ConfigError."""
    if not source:
        raise ConfigError(f"{key} is empty: name a .jsonl or .parquet file, a directory of them, or datasets:PATH")
    if source.startswith("datasets:"):
        rows, fingerprint = _read_dataset(source.removeprefix("datasets:"), key)
    else:
        rows, fingerprint = _read_files(Path(source), key)
    if not rows:
        raise ConfigError(f"{key} = {source} is empty: it needs at least one prompt")
    return rows, fingerprint


def _read_files(source: Path, key: str) -> tuple[list[Row], str]:
    rows: list[Row] = []
    digest = hashlib.sha256()
    for file in _files(source, key):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {key} = {file}: {error.strerror or error}") from None
        digest.update(hashlib.sha256(content).digest())
        rows += _READERS[file.suffix](file, content)
    return rows, digest.hexdigest()


def _files(source: Path, key: str) -> list[Path]:
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix in _READERS and path.is_file())
        if not files:
            raise ConfigError(f"{key} = {source} has no .jsonl or .parquet file in it: put the prompts there or name a file")
        return files
    if not source.exists():
        raise ConfigError(f"{key} = {source} does not exist: name a .jsonl or .parquet file, a directory of them, or datasets:PATH")
    if source.suffix not in _READERS:
        raise ConfigError(f"{key} = {source} has an unknown ending: it must be .jsonl or .parquet")
    return [source]


def _read_jsonl(file: Path, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            fields = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ConfigError(f"{where} is broken JSON ({reason}): every line must be one JSON object") from None
        if b"\\u" in line and not _is_unicode(fields):
            raise ConfigError(f"{where} has half of a surrogate pair (\\\\ud800 to \\\\udfff): write the whole character")
        if not isinstance(fields, dict):
            raise ConfigError(f'{where} is no JSON object: write {{"prompt": …}}')
        yield _row(where, fields)


def _is_unicode(fields: Any) -> bool:
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(file: Path, content: bytes) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(pa.BufferReader(content))
        known = [name for name in opened.schema_arrow.names if name in FIELDS]
        rows: list[dict[str, Any]] = []
        for batch in opened.iter_batches(_AT_ONCE, columns=known, use_threads=False):
            batch.validate(full=True)  # text that is no UTF-8, and offsets that would be read as they are
            rows += batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{file} is no readable Parquet file: {error}") from None
    for number, fields in enumerate(rows, 1):
        yield _row(f"{file} row {number}", fields)


_READERS: dict[str, Callable[[Path, bytes], Iterator[Row]]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _read_dataset(reference: str, key: str) -> tuple[list[Row], str]:
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"{key} = datasets:{reference} needs the datasets library: pip install 'reflux[datasets]'") from None
    path, _, split = reference.partition(":")
    try:
        saved = (Path(path) / "state.json").exists() or (Path(path) / "dataset_dict.json").exists()
        opened = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, split=split or "train")
        chosen = opened[split or "train"] if isinstance(opened, datasets.DatasetDict) else opened
        rows = [_row(f"datasets:{reference} row {n}", fields) for n, fields in enumerate(chosen, 1)]
    except Exception as error:  # noqa: BLE001 - the library raises whatever its readers and its network raise
        raise ConfigError(f"cannot load {key} = datasets:{reference}: {str(error).partition(chr(10))[0]}") from None
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.fields, sort_keys=True, default=str).encode() + b"\n")
    return rows, digest.hexdigest()


def _row(where: str, fields: dict[str, Any]) -> Row:
    return Row(where, {name: fields[name] for name in FIELDS if fields.get(name) is not None})
