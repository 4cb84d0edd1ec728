# SPDX-License-Identifier: Apache-2.0
"""Rows of a Parquet file as plain lines: which columns they are made of, and what is refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_batchllm.errors import UsageError
from vllm_batchllm.messages import clip

SAMPLING_COLUMNS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "n",
    "stop",
    "model",
)
"""Columns of these names go along, because plain lines know them."""

BATCH_ROWS = 1024
_BUFFER_BYTES = 2**20
_NOT_JSON = (ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a Parquet file hold what, as the options name them; None: not named.

    Where neither `prompt` nor `messages` is named, a column of one of these names is taken. Where
    `id` is not named, the id is the row's number, from 0.
    """

    prompt: str | None = None
    messages: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class RowShape:
    """What a line is made of: its content's field and column, its id's column, what goes along."""

    field: str
    content: str
    id: str | None
    sampling: tuple[str, ...]

    def columns(self) -> list[str]:
        """All columns that are read, each once."""
        return list(dict.fromkeys((self.content, *filter(None, [self.id]), *self.sampling)))


def needed(module: str, what: str) -> Any:
    """A module of the extra `jobs`.

    Raises:
        UsageError: it is not installed; `what` is what asks for it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"{what} needs the package {package}, which cannot be imported ({error}): "
            "pip install vllm-batchllm[jobs]"
        ) from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into a UsageError that names it."""
    pa = needed("pyarrow", f"{path}: a Parquet file")
    try:
        yield
    except OSError as error:
        reason = error.strerror or f"damaged Parquet: {_first_line(error)}"
        raise UsageError(f"{path} cannot be read: {reason}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read: damaged Parquet: a name in it: {error}") from None
    except pa.ArrowException as error:
        raise UsageError(f"{path} cannot be read: no Parquet: {_first_line(error)}") from None


def open_parquet(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile` that is read in small pieces. Call it within `reading`."""
    pq = needed("pyarrow.parquet", f"{path}: a Parquet file")
    return pq.ParquetFile(
        path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
    )


def parquet_lines(path: Path, columns: Columns) -> Iterator[bytes]:
    """Yield a plain line for every row, in their order; memory holds some thousand rows.

    A value that is null is left out of its line. One that no line can carry (text that is no UTF-8)
    stands in it all the same, so that the line is refused and not the file.

    Raises:
        UsageError: it cannot be read, or has no such column.
    """
    with reading(path), open_parquet(path) as file:
        shape = row_shape(path, file.schema_arrow, columns)
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=shape.columns()):
            for row in _rows(batch):
                yield plain_line(number, row, shape)
                number += 1


def row_shape(path: Path, schema: Any, columns: Columns) -> RowShape:
    """Choose the columns. Raises UsageError where one is missing, or is nothing of the kind."""
    field, content = _content_column(path, schema.names, columns)
    for option, name in ((field, content), ("id", columns.id)):
        if name is not None:
            _check_column(path, schema, option, name)
    sampling = (each for each in SAMPLING_COLUMNS if schema.names.count(each) == 1)
    taken = {content, columns.id}
    return RowShape(field, content, columns.id, tuple(n for n in sampling if n not in taken))


def plain_line(number: int, row: dict[str, Any], shape: RowShape) -> bytes:
    """Return the line of one row, with its line feed."""
    identity = row[shape.id] if shape.id is not None else None
    record: dict[str, Any] = {"id": number if identity is None else identity}
    content = row[shape.content]
    if content is not None:
        record[shape.field] = _messages(content) if shape.field == "messages" else content
    record |= {name: row[name] for name in shape.sampling if row[name] is not None}
    text = json.dumps(record, ensure_ascii=False, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: escaped, JSON can carry it
        return json.dumps(record, default=str).encode() + b"\n"


def _content_column(path: Path, names: Sequence[str], columns: Columns) -> tuple[str, str]:
    """Which field a line gets, and the column that it comes from."""
    named = {"prompt": columns.prompt, "messages": columns.messages}
    found = [(field, name) for field, name in named.items() if name is not None]
    if len(found) == 2:
        raise UsageError("--prompt-column and --messages-column exclude each other: name one")
    if found:
        return found[0]
    found = [(field, field) for field in named if field in names]
    if len(found) == 1:
        return found[0]
    what = "both a column" if found else "neither a column"
    raise UsageError(
        f'{path} has {what} "prompt" {"and" if found else "nor"} one "messages": name the column '
        f"to be read with --prompt-column or --messages-column; {_told(names)}"
    )


_TEXTS = ("string", "large_string", "string_view", "null")
_LISTS = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
_KINDS = {
    "prompt": ((*_TEXTS, *_LISTS), "texts or lists of token ids"),
    "messages": ((*_TEXTS, *_LISTS), "lists of messages or their JSON text"),
    "id": ((*_TEXTS, "integer"), "texts or whole numbers"),
}


def _check_column(path: Path, schema: Any, use: str, name: str) -> None:
    option = f"--{use}-column {clip(name)}"
    count = schema.names.count(name)
    if count != 1:
        problem = "has no such column" if count == 0 else f"has {count} columns of this name"
        raise UsageError(f"{option}: {path} {problem}; {_told(schema.names)}")
    kinds, wanted = _KINDS[use]
    kind = schema.field(name).type
    if not _is_one_of(kind, kinds):
        raise UsageError(
            f"{option}: this column of {path} holds {kind}, not {wanted}; {_told(schema.names)}"
        )


def _is_one_of(kind: Any, names: Sequence[str]) -> bool:
    """Whether a type of Arrow, or that of a dictionary's values, is one of these."""
    types = needed("pyarrow.types", "Parquet")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (getattr(types, f"is_{name}", None) for name in names)  # Arrow 15 knows no views
    return any(test is not None and test(kind) for test in tests)


def _told(names: Sequence[str]) -> str:
    shown = ", ".join(map(clip, names[:50]))
    return f"its columns: {shown}{', ...' if len(names) > 50 else ''}"


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    for values in zip(*map(_column_values, batch.columns), strict=True):
        yield dict(zip(names, values, strict=True))


def _column_values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_lenient(item) for item in column]


def _lenient(item: Any) -> Any:
    """A value; half a surrogate pair for one that is no UTF-8, which the line's reader refuses."""
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return "\udcff"


def _messages(value: Any) -> Any:
    """Messages of a row: a JSON text as what it says, structs without the fields that are null."""
    if not isinstance(value, str):
        return _without_nulls(value)
    try:
        return json.loads(value)
    except _NOT_JSON:
        return value  # a line with this is refused, with its number


def _without_nulls(value: Any) -> Any:
    """All structs of a column have the fields of each: those that are null were never there."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
