# SPDX-License-Identifier: Apache-2.0
"""The requests of a large file as arrays: where each stands, the hashes of its text. No object for a line."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

from vllm_batchllm.input.prompt_text import hash_text, messages_text
from vllm_batchllm.input.reader import BadLine, ReadLine, read_lines
from vllm_batchllm.input.request import PlanRequest, parse_request
from vllm_batchllm.prefix.prefix_order import HashTable

_TELL_EVERY = 2_000
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextTable:
    """All good requests of a file; every array has an entry for each, in file order.

    offsets, lengths: bytes in the file. numbers: of lines, from 1. text_bytes: of the prompt, token ids as 4 each.
    whole: 64-bit hash of the whole prompt and all that keeps it apart. max_tokens: 0 where none is stated.
    is_unread: it reads nothing from a cache, as far as its log-probabilities go. table: chained hashes of the text.
    bad_lines: those that are no requests.
    """

    path: Path
    offsets: Ints
    lengths: Ints
    numbers: Ints
    text_bytes: Ints
    whole: npt.NDArray[np.uint64]
    max_tokens: Ints
    is_unread: npt.NDArray[np.bool_]
    table: HashTable
    bad_lines: list[BadLine]

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(slots=True)
class _Columns:
    """The arrays while they grow."""

    places: array[int] = field(default_factory=lambda: array("q"))
    whole: array[int] = field(default_factory=lambda: array("Q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("q", (0,)))
    bad_lines: list[BadLine] = field(default_factory=list)

    def add(self, line: ReadLine) -> None:
        request = line.content
        if isinstance(request, BadLine):
            self.bad_lines.append(request)
            return
        text = text_of(request)
        hashes, whole = hash_text(text, _before(request))
        unread = request.readable == 0
        limit = request.max_tokens or 0
        self.places.extend((line.offset, line.length, request.line, len(text), limit, int(unread)))
        self.whole.append(whole)
        self.hashes.extend(hashes)
        self.starts.append(len(self.hashes))


def text_table(
    path: Path, on_progress: Callable[[int], object] = lambda num_bytes: None
) -> TextTable:
    """Read the plain file at `path` once; memory holds some 8 bytes for every 64 to 256 of its text.

    on_progress: called with the bytes read since its last call.

    Raises:
        OSError: the file cannot be read.
    """
    columns, told = _Columns(), 0
    for number, line in enumerate(read_lines(path), 1):
        columns.add(line)
        if number % _TELL_EVERY == 0:
            on_progress(line.offset + line.length - told)
            told = line.offset + line.length
    places = np.frombuffer(columns.places, np.int64).reshape(-1, 6).T
    offsets, lengths, numbers, text_bytes, max_tokens, unread = map(np.ascontiguousarray, places)
    return TextTable(
        path,
        offsets,
        lengths,
        numbers,
        text_bytes,
        np.frombuffer(columns.whole, np.uint64),
        max_tokens,
        unread.astype(bool),
        HashTable(
            np.frombuffer(columns.hashes, np.uint64), np.frombuffer(columns.starts, np.int64)
        ),
        columns.bad_lines,
    )


@contextmanager
def reading_again(table: TextTable) -> Iterator[Callable[[int], PlanRequest]]:
    """A function that gives the request at an index of the table. Raises OSError."""
    file = os.open(table.path, os.O_RDONLY)

    def read(index: int) -> PlanRequest:
        raw = os.pread(file, int(table.lengths[index]), int(table.offsets[index]))
        return parse_request(int(table.numbers[index]), raw.decode())

    try:
        yield read
    finally:
        os.close(file)


def read_at(table: TextTable, indices: Sequence[int]) -> list[PlanRequest]:
    """The requests at these indices. Raises OSError."""
    with reading_again(table) as read:
        return [read(index) for index in indices]


def text_of(request: PlanRequest) -> bytes:
    """The text of a prompt, before a template; the ids of one that is tokens."""
    content = request.content
    if isinstance(content, str):
        return content.encode()
    return content.tobytes() if isinstance(content, array) else messages_text(content.messages)


def _before(request: PlanRequest) -> bytes:
    """What keeps prompts from sharing blocks whatever their text."""
    content = request.content
    kind = type(content).__name__
    if isinstance(content, (str, array)):
        return kind.encode() + request.namespace
    return to_json([kind, content.tools, content.template_options]) + request.namespace
