# SPDX-License-Identifier: Apache-2.0
"""Request traces in the Mooncake format, made small enough for a fake KV cache.

One JSON object a line: ``input_length`` and ``output_length`` in tokens, and ``hash_ids``, one id
for every block of prompt tokens (512 of them in Mooncake's traces, 16 in Qwen's), the last of which may be partly filled. Two requests share
their prompts as far as their ids are equal from the start. ``timestamp``, where it is a number from 0, is when the request
arrived. Other fields are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

TRACE_BLOCK_SIZE = 512
"""Prompt tokens for each id of a trace, if nothing else is said."""
_MOST_EXACT = 2**53
"""Whole timestamps from here on are no times: a float does not hold them."""


class TraceError(ValueError):
    """A line that is no request; the text names file, line, and what is wrong."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace: lengths in tokens, the ids of its prompt's blocks, and its timestamp as it stands there."""

    num_prompt_tokens: int
    num_output_tokens: int
    block_ids: tuple[int, ...]
    timestamp: float | None = None


def read_trace(
    path: Path,
    limit: int | None = None,
    trace_block_size: int = TRACE_BLOCK_SIZE,
    name: str | None = None,
) -> list[TraceRequest]:
    """The first ``limit`` requests of a plain JSONL file; blank lines are skipped.

    trace_block_size: prompt tokens for each id. name: what messages call the file.

    Raises:
        OSError: the file cannot be read.
        TraceError: a line is no request.
    """
    return list(islice(_requests(path, trace_block_size, name or str(path)), limit))


def prompt_of(
    request: TraceRequest, block_size: int, trace_block_size: int = TRACE_BLOCK_SIZE
) -> list[int]:
    """Token ids of a prompt of the same shape, with blocks of ``block_size`` tokens.

    Every block is a run of its own id. A partly filled last block stays partly filled, by the
    same share, but is never empty or full.
    """
    num_full, rest = divmod(request.num_prompt_tokens, trace_block_size)
    tokens = [block_id for block_id in request.block_ids[:num_full] for _ in range(block_size)]
    if rest:
        num_rest = min(max(rest * block_size // trace_block_size, 1), block_size - 1)
        tokens += [request.block_ids[-1]] * num_rest
    return tokens


def output_of(
    request: TraceRequest, block_size: int, trace_block_size: int = TRACE_BLOCK_SIZE
) -> int:
    """Output tokens, at least one, scaled as prompts are."""
    return max(round(request.num_output_tokens * block_size / trace_block_size), 1)


def arrivals_of(requests: Sequence[TraceRequest]) -> list[float] | None:
    """When each request arrived, seconds, the first at 0; None if one of them does not say.

    Integers are milliseconds, as in Mooncake's traces; where one has a decimal point, all are seconds, as in Qwen's.
    """
    stamps = [request.timestamp for request in requests if request.timestamp is not None]
    if not stamps or len(stamps) < len(requests):
        return None
    unit_s = 1.0 if any(isinstance(stamp, float) for stamp in stamps) else 1e-3
    first = min(stamps)
    return [(stamp - first) * unit_s for stamp in stamps]


def num_distinct_blocks(requests: Sequence[TraceRequest]) -> int:
    """KV blocks that would hold every prompt once."""
    return len({block_id for request in requests for block_id in request.block_ids})


def _requests(path: Path, trace_block_size: int, name: str) -> Iterator[TraceRequest]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield _parse(line, trace_block_size)
            except TraceError as error:
                raise TraceError(f"{name}, line {number}: {error}") from None


def _parse(line: bytes, trace_block_size: int) -> TraceRequest:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise TraceError(f"not a JSON object but {type(record).__name__}")
    num_prompt_tokens = _count(record, "input_length")
    num_output_tokens = _count(record, "output_length")
    ids = record.get("hash_ids")
    if not isinstance(ids, list) or not all(_is_count(item) for item in ids):
        raise TraceError('"hash_ids" must be a list of integers from 0')
    if not num_prompt_tokens:
        raise TraceError('"input_length" is 0: a request without a prompt cannot be served')
    num_blocks = -(-num_prompt_tokens // trace_block_size)
    if len(ids) != num_blocks:
        raise TraceError(
            f'"input_length" {num_prompt_tokens} needs {num_blocks} "hash_ids" of '
            f"{trace_block_size} tokens, not {len(ids)}; for blocks of another size give "
            "--trace-block-size"
        )
    return TraceRequest(num_prompt_tokens, num_output_tokens, tuple(ids), _timestamp(record))


def _count(record: dict[str, Any], name: str) -> int:
    if name not in record:
        raise TraceError(f'"{name}" is missing')
    value = record[name]
    if not _is_count(value):
        raise TraceError(f'"{name}" must be an integer from 0, not {value!r:.40}')
    return int(value)


def _timestamp(record: dict[str, Any]) -> float | None:
    value = record.get("timestamp")
    if isinstance(value, float):
        return value if math.isfinite(value) and value >= 0 else None
    return value if isinstance(value, int) and _is_count(value) and value < _MOST_EXACT else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
