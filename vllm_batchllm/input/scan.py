# SPDX-License-Identifier: Apache-2.0
"""One pass over a job's input: where each line stands, what it is called, the hashes of its prompt. Arrays, no objects."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.line import NO_DEFAULTS, JobLine, LineDefaults, parse_line
from vllm_batchllm.input.prompt_text import body_digest, chained_hashes
from vllm_batchllm.input.raw_lines import raw_lines
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.prefix.prefix_order import HashTable

MAX_LINE_BYTES = 32 * 2**20
_TELL_EVERY = 20_000

Digests = npt.NDArray[np.uint64]
"""(n, 2): 128 bits each."""


@dataclass(frozen=True, slots=True)
class Input:
    """What a scan has found; every array has an entry for each line that is not blank.

    offsets, lengths: bytes in the file. numbers: line numbers from 1. ids, bodies: digests of names and of requests; zeros
    for bad lines. is_bad: the line is no request. text_bytes: of the prompt. table: chained hashes of the prompts.
    fingerprint: of the file's bytes. is_plain: the kind of the first line that has one.
    """

    path: Path
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    ids: Digests
    bodies: Digests
    is_bad: npt.NDArray[np.bool_]
    text_bytes: npt.NDArray[np.int64]
    table: HashTable
    fingerprint: str
    is_plain: bool
    defaults: LineDefaults
    max_line_bytes: int

    def __len__(self) -> int:
        return len(self.offsets)


def digest_of_id(custom_id: str) -> bytes:
    """16 bytes that stand for a name."""
    packed = custom_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(packed, digest_size=16).digest()


def file_fingerprint(stream: BufferedReader) -> str:
    """What `scan` calls the fingerprint of a file, of one that is open."""
    return hashlib.file_digest(stream, _new_fingerprint).hexdigest()


def _new_fingerprint() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


@dataclass(slots=True)
class _Columns:
    """The arrays while they grow."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    ids: bytearray = field(default_factory=bytearray)
    bodies: bytearray = field(default_factory=bytearray)
    is_bad: bytearray = field(default_factory=bytearray)
    text_bytes: array[int] = field(default_factory=lambda: array("q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("q", (0,)))

    def add(self, number: int, offset: int, length: int, line: JobLine | None) -> None:
        self.numbers.append(number)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.is_bad.append(line is None)
        if line is None:
            self.ids += bytes(16)
            self.bodies += bytes(16)
            self.text_bytes.append(0)
        else:
            hashes, num_bytes = chained_hashes(line)
            self.ids += digest_of_id(line.custom_id)
            self.bodies += body_digest(line)
            self.text_bytes.append(num_bytes)
            self.hashes.extend(hashes)
        self.starts.append(len(self.hashes))


def scan(
    path: Path,
    defaults: LineDefaults = NO_DEFAULTS,
    max_line_bytes: int = MAX_LINE_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> Input:
    """Read ``path`` once. Bad lines are marked; what is wrong with them is said when they are answered.

    Args:
        on_progress: gets lines and bytes read, from time to time.

    Raises:
        UsageError: the file cannot be read; names it and says why.
    """
    columns = _Columns()
    kinds: list[bool] = []
    fingerprint = _new_fingerprint()
    try:
        with path.open("rb") as stream:
            for number, offset, length, raw in raw_lines(
                stream, max_line_bytes, fingerprint.update
            ):
                line = _parsed(number, raw, defaults, max_line_bytes)
                if line is not None and not kinds:
                    kinds.append(line.is_plain)
                columns.add(number, offset, length, line)
                if on_progress is not None and len(columns.numbers) % _TELL_EVERY == 0:
                    on_progress(len(columns.numbers), offset + length)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    return Input(
        path,
        np.frombuffer(columns.offsets, np.int64),
        np.frombuffer(columns.lengths, np.int64),
        np.frombuffer(columns.numbers, np.int64),
        np.frombuffer(columns.ids, np.uint64).reshape(-1, 2),
        np.frombuffer(columns.bodies, np.uint64).reshape(-1, 2),
        np.frombuffer(columns.is_bad, np.bool_),
        np.frombuffer(columns.text_bytes, np.int64),
        HashTable(
            np.frombuffer(columns.hashes, np.uint64), np.frombuffer(columns.starts, np.int64)
        ),
        fingerprint.hexdigest(),
        bool(kinds and kinds[0]),
        defaults,
        max_line_bytes,
    )


def _parsed(
    number: int, raw: bytes | None, defaults: LineDefaults, max_line_bytes: int
) -> JobLine | None:
    try:
        return parse_line(number, raw, defaults, max_line_bytes)
    except BadLineError:
        return None


class LineReader:
    """Lines of a scanned input again, at any place."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._file = os.open(source.path, os.O_RDONLY)

    def raw(self, index: int) -> bytes | None:
        """The bytes of the line at ``index``; None where it is too long."""
        length = int(self._source.lengths[index])
        if length > self._source.max_line_bytes:
            return None
        return os.pread(self._file, length, int(self._source.offsets[index]))

    def line(self, index: int) -> JobLine:
        """The request at ``index``. Raises BadLineError where it is none."""
        source = self._source
        number = int(source.numbers[index])
        return parse_line(number, self.raw(index), source.defaults, source.max_line_bytes)

    def text_bytes(self, index: int) -> int:
        """Bytes of the prompt's text."""
        return int(self._source.text_bytes[index])

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)
