# SPDX-License-Identifier: Apache-2.0
"""Answers as a Parquet file: beside the columns of the input, or with their ids alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.parquet_source import BATCH_ROWS, needed, open_parquet, reading
from vllm_batchllm.messages import clip

_ANSWER_COLUMNS = {
    "text": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "error": "string",
}
_CHOICES = {"choices": "string"}
_GROUP_BYTES = 2**26
"""Rows are written when they are this large together; each of these is a row group."""

_NO_ANSWER = {"error": "no answer"}


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers in the order of the input, as often as they are asked for; None: there is none."""

    num_lines: int
    read: Callable[[], Iterator[bytes | None]]


def check_columns(output: Path, parquet_input: Path | None) -> None:
    """Raises UsageError where Parquet cannot be written, or has no names left for our columns."""
    needed("pyarrow", f"{output}: a Parquet file")
    if parquet_input is not None:
        _names_beside(
            parquet_input, _input_schema(parquet_input).names, [*_ANSWER_COLUMNS, *_CHOICES]
        )


def write_parquet(
    file: BinaryIO, answers: Answers, output: Path, parquet_input: Path | None = None
) -> None:
    """Write a table: with `parquet_input`, one row for each of its rows, whose columns come first.

    Ours are `text`, `finish_reason`, `prompt_tokens`, `completion_tokens` and `error` (null, or what
    happened), and `choices` as JSON text if any answer has several; one that the input has already is
    `answer_text` and so on. Without `parquet_input`, `id` comes first, as whole numbers or else as
    texts, and what has no answer is left out. Memory holds some 64 MiB of rows.

    Raises:
        UsageError: the input is not what it was, or the journal holds no answers.
        OSError: `file` cannot be written.
    """
    pa = needed("pyarrow", f"{output}: a Parquet file")
    columns = _ANSWER_COLUMNS | (_CHOICES if _any_choices(answers) else {})
    try:
        if parquet_input is None:
            schema, batches = _alone(pa, answers, columns)
        else:
            schema, batches = _beside(pa, parquet_input, answers, columns)
        _write(file, schema, batches)
    except pa.ArrowException as error:
        raise UsageError(f"{output} cannot be written as Parquet: {error}") from error


def _alone(pa: Any, answers: Answers, columns: dict[str, str]) -> tuple[Any, Iterator[Any]]:
    """Schema and batches of a table of answers alone."""
    columns = {"id": "int64" if _ids_are_numbers(answers) else "string", **columns}
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])

    def batches() -> Iterator[Any]:
        lines = (line for line in answers.read() if line is not None)
        while some := list(islice(lines, BATCH_ROWS)):
            yield pa.RecordBatch.from_arrays(_arrays(pa, some, columns), schema=schema)

    return schema, batches()


def _beside(
    pa: Any, path: Path, answers: Answers, columns: dict[str, str]
) -> tuple[Any, Iterator[Any]]:
    """Schema and batches of the input's table with the answers beside."""
    theirs = _input_schema(path, answers.num_lines)
    names = _names_beside(path, theirs.names, columns)
    ours = [pa.field(name, pa.type_for_alias(columns[each])) for each, name in names.items()]
    schema = pa.schema([*theirs, *ours], metadata=theirs.metadata)

    def batches() -> Iterator[Any]:
        lines = answers.read()
        for batch in _input_batches(path):
            arrays = _arrays(pa, islice(lines, batch.num_rows), columns)
            yield pa.RecordBatch.from_arrays([*batch.columns, *arrays], schema=schema)

    return schema, batches()


def _input_schema(path: Path, num_lines: int | None = None) -> Any:
    """The input's schema. Raises UsageError if it has not as many rows as it had."""
    with reading(path), open_parquet(path) as source:
        num_rows = source.metadata.num_rows
        if num_lines not in (None, num_rows):
            raise UsageError(
                f"{path} has {num_rows:,} rows, but the job read {num_lines:,}: the file has changed; "
                "put the old one back, or give an OUTPUT that ends in .jsonl"
            )
        return source.schema_arrow


def _input_batches(path: Path) -> Iterator[Any]:
    with reading(path), open_parquet(path) as source:
        yield from source.iter_batches(BATCH_ROWS)


def _names_beside(path: Path, theirs: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """What each of our columns is called where the input has columns of its own."""
    taken = set(theirs)
    names = {name: f"answer_{name}" if name in taken else name for name in ours}
    for name in names.values():
        if name in taken:
            raise UsageError(
                f"{path} has a column {clip(name)}, and one without the answer_ as well: rename one, "
                "or give an OUTPUT that ends in .jsonl"
            )
    return names


def _write(file: BinaryIO, schema: Any, batches: Iterable[Any]) -> None:
    pa, pq = needed("pyarrow", "Parquet"), needed("pyarrow.parquet", "Parquet")
    group: list[Any] = []
    group_bytes = 0
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            group.append(batch)
            group_bytes += batch.nbytes
            if group_bytes >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group, group_bytes = [], 0
        if group:
            writer.write_table(pa.Table.from_batches(group))


def _arrays(pa: Any, lines: Iterable[bytes | None], columns: dict[str, str]) -> list[Any]:
    """The answers' columns, one array each."""
    rows = [_row(line, columns) for line in lines]
    return [_array(pa, [row.get(name) for row in rows], kind) for name, kind in columns.items()]


def _array(pa: Any, values: list[Any], kind: str) -> Any:
    try:
        return pa.array(values, pa.type_for_alias(kind))
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can carry and Parquet cannot
        texts = [value and value.encode(errors="replace").decode() for value in values]
        return pa.array(texts, pa.type_for_alias(kind))


def _row(line: bytes | None, columns: dict[str, str]) -> dict[str, Any]:
    """The values of one answer by column."""
    if line is None:
        return _NO_ANSWER
    record = _record(line)
    usage = record["usage"] if isinstance(record.get("usage"), dict) else {}
    choices, identity = record.get("choices"), record.get("id")
    if columns.get("id") == "string" and not isinstance(identity, str | None):
        identity = json.dumps(identity)
    return {
        "id": identity,
        "text": record.get("text"),
        "finish_reason": record.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "error": _error_text(record.get("error")),
        "choices": None if choices is None else json.dumps(choices, ensure_ascii=False),
    }


def _error_text(error: Any) -> str | None:
    if error is None or isinstance(error, str):
        return error
    parts = [error.get(each) for each in ("code", "message")] if isinstance(error, dict) else []
    return ": ".join(str(part) for part in parts if part) or json.dumps(error)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the journal is damaged: {clip(line)} is no answer: {error}") from None
    return dict(record)


def _any_choices(answers: Answers) -> bool:
    """Whether an answer has choices: within a text, the quotes would be escaped."""
    return any(line is not None and b'"choices"' in line for line in answers.read())


def _ids_are_numbers(answers: Answers) -> bool:
    ids = (_record(line).get("id") for line in answers.read() if line is not None)
    return all(type(each) is int and -(2**63) <= each < 2**63 for each in ids)
