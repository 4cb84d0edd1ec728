# SPDX-License-Identifier: Apache-2.0
"""Reading a JSONL file line by line: every line becomes a request or a reason why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_batchllm.input.raw_lines import raw_lines
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.request import PlanRequest, parse_request

MAX_LINE_BYTES = 64 * 2**20
"""Longer lines are bad: no context is that long, and such a file is hardly JSONL."""


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


@dataclass(frozen=True, slots=True)
class ReadLine:
    """Where a line stands in its file, in bytes, and what it holds."""

    offset: int
    length: int
    content: PlanRequest | BadLine


def read_requests(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> ReadResult:
    """Read a plain JSONL file; blank lines are skipped, bad ones collected.

    Raises:
        OSError: the file cannot be read.
    """
    result = ReadResult([], [])
    for line in read_lines(path, max_line_bytes):
        if isinstance(line.content, BadLine):
            result.bad_lines.append(line.content)
        else:
            result.requests.append(line.content)
    return result


def read_lines(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[ReadLine]:
    """The same line by line; memory holds one at a time. Raises OSError."""
    with path.open("rb") as stream:
        for number, offset, length, raw in raw_lines(stream, max_line_bytes):
            try:
                text = _decode(raw, max_line_bytes)
                if text.strip():
                    yield ReadLine(offset, length, parse_request(number, text))
            except BadLineError as error:
                yield ReadLine(offset, length, BadLine(number, str(error)))


def _decode(line: bytes | None, max_line_bytes: int) -> str:
    if line is None:
        raise BadLineError(f"longer than {max_line_bytes:,} bytes")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadLineError(f"not valid UTF-8: {error.reason} at byte {error.start}") from None
