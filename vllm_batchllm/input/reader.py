# SPDX-License-Identifier: Apache-2.0
"""Reading a JSONL file line by line: every line becomes a request or a reason why not."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.request import PlanRequest, parse_request

MAX_LINE_BYTES = 64 * 2**20
"""Longer lines are bad: no context is that long, and such a file is hardly JSONL."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was left out: its number, from 1, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The requests of a file in their order, and the lines that are none."""

    requests: list[PlanRequest]
    bad_lines: list[BadLine]


def read_requests(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> ReadResult:
    """Read a JSONL file, packed by gzip if its name ends in .gz; blank lines are skipped, bad ones collected.

    Beside the result, memory holds one line at a time.

    Raises:
        OSError: the file cannot be read, or is no gzip file although its name says so.
        EOFError, zlib.error: it is a damaged one.
    """
    result = ReadResult([], [])
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        for number, line in _queues(stream, max_line_bytes):
            try:
                text = _decode(line, max_line_bytes)
                if text.strip():
                    result.requests.append(parse_request(number, text))
            except BadLineError as error:
                result.bad_lines.append(BadLine(number, str(error)))
    return result


def _queues(stream: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield line numbers with lines; None for one that is too long, which is not kept."""
    number = 0
    while line := stream.readline(max_line_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if len(line) <= max_line_bytes:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(max_line_bytes)
        yield number, None


def _decode(line: bytes | None, max_line_bytes: int) -> str:
    if line is None:
        raise BadLineError(f"longer than {max_line_bytes:,} bytes")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadLineError(f"not valid UTF-8: {error.reason} at byte {error.start}") from None
