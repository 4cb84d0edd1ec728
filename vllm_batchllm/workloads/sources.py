# SPDX-License-Identifier: Apache-2.0
"""What is simulated: a workload by name, a batch file, or a trace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.plain_file import NO_COLUMNS, plain_file, shown_name
from vllm_batchllm.input.reader import BadLine, read_requests
from vllm_batchllm.input.request import PlanRequest
from vllm_batchllm.input.source import STANDARD_INPUT, Columns
from vllm_batchllm.input.text_table import read_at, text_table
from vllm_batchllm.input.tokenize import TokenizedRequest, tokenize_requests
from vllm_batchllm.input.tokenizer import TokenizerError, load_tokenizer
from vllm_batchllm.input.trace import (
    TRACE_BLOCK_SIZE,
    TraceError,
    TraceRequest,
    arrivals_of,
    output_of,
    prompt_of,
    read_trace,
)
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload, resolve_name
from vllm_batchllm.workloads.sample import sample_of_table

SAMPLE = "sample"
"""With which the description of a part of a file begins."""
FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".zst", ".zstd", ".parquet")


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How a batch is drawn or read.

    scale: divides all lengths (not those of batch files). num_requests: of a workload, or at most
    so many of a file (the first of a trace, whole prefix groups of a batch file, drawn by `seed`); None for its own
    number. columns: of a Parquet file. tokenizer: for batch files with text, named by `tokenizer_option`.
    output_tokens: of each request of a batch file, up to its own limit, which is what the engine
    knows; None takes the limit as the length. trace_block_size: prompt tokens for each id of a trace.
    """

    scale: float = 1.0
    num_requests: int | None = None
    seed: int = 0
    tokenizer: str | None = None
    output_tokens: int | None = None
    trace_block_size: int = TRACE_BLOCK_SIZE
    columns: Columns = NO_COLUMNS
    tokenizer_option: str = "--tokenizer"


def is_file(source: str) -> bool:
    """Whether `source` is standard input, an existing file or named like one, and no workload."""
    # os.path, not Path: that raises for names which no file can have.
    return source == STANDARD_INPUT or os.path.isfile(source) or source.endswith(FILE_SUFFIXES)


def check_source(source: str) -> None:
    """Raise UsageError for a workload that is unknown or a file that is not there, before anything is read."""
    if not is_file(source):
        resolve_name(source)
    elif source != STANDARD_INPUT and not os.path.exists(source):
        raise UsageError(f"{source} cannot be read: No such file or directory")


def load_batch(source: str, options: InputOptions) -> Batch:
    """The batch that `source` names: an existing file, or else a workload.

    Raises:
        UsageError: no such workload, a file that cannot be read, a line that is no request, or a
            scale that is none.
    """
    if not (math.isfinite(options.scale) and options.scale > 0):
        raise UsageError(f"scale must be a number above 0, not {options.scale:g}")
    if not is_file(source):
        resolve_name(source)
        return make_workload(
            source,
            scale=options.scale,
            num_requests=options.num_requests,
            seed=options.seed,
            vocab_size=2**17,
        )
    name = shown_name(source)
    with plain_file(source, options.columns) as path:
        try:
            return (
                _trace(path, name, options) if _is_trace(path) else _batch_file(path, name, options)
            )
        except OSError as error:
            raise UsageError(f"{source} cannot be read: {error.strerror or error}") from None


def _is_trace(path: Path) -> bool:
    """Whether the first line that is not blank has the `hash_ids` of a trace."""
    with path.open("rb") as stream:
        first = next((line for line in stream if line.strip()), b"")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "hash_ids" in record


def _trace(path: Path, name: str, options: InputOptions) -> Batch:
    trace_size = options.trace_block_size
    block_size = round(trace_size / options.scale)
    if not 1 <= block_size <= trace_size:
        raise UsageError(
            f"a scale of {options.scale:g} makes blocks of {block_size} tokens out of the "
            f"trace's {trace_size}; give 1 to {trace_size}"
        )
    try:
        requests = _renumbered(read_trace(path, options.num_requests, trace_size, name))
    except TraceError as error:
        raise UsageError(str(error)) from None
    if not requests:
        raise UsageError(f"{name} holds no requests")
    return _checked(
        Batch(
            name=Path(name).name,
            prompts=[prompt_of(request, block_size, trace_size) for request in requests],
            output_lens=[output_of(request, block_size, trace_size) for request in requests],
            scale=trace_size / block_size,
            description=f"trace, blocks of {block_size} tokens",
            arrivals_s=arrivals_of(requests),
        )
    )


def _renumbered(requests: Sequence[TraceRequest]) -> list[TraceRequest]:
    """The same requests; a trace's ids may be too large for token ids, so they are counted."""
    numbers: dict[int, int] = {}
    return [
        replace(
            request,
            block_ids=tuple(numbers.setdefault(one, len(numbers)) for one in request.block_ids),
        )
        for request in requests
    ]


def _batch_file(path: Path, name: str, options: InputOptions) -> Batch:
    requests, told, sample_of = _requests(path, name, options)
    tokenized = _tokenized(name, requests, options)
    if not tokenized:
        raise UsageError(f"{name} holds no requests")
    limits = [_limit(name, place, item, options) for place, item in enumerate(tokenized)]
    wanted = options.output_tokens
    lengths = limits if wanted is None else [min(limit, wanted) for limit in limits]
    return _checked(
        Batch(
            name=Path(name).name,
            prompts=_apart(tokenized),
            output_lens=lengths,
            lengths_known=lengths == limits,
            description=told,
            sample_of=sample_of,
        )
    )


def _requests(
    path: Path, name: str, options: InputOptions
) -> tuple[Sequence[PlanRequest], str, int | None]:
    """Those that are taken, what they are, in words, and of how many they are a sample."""
    wanted = options.num_requests
    if wanted is None:
        result = read_requests(path)
        _check_lines(name, result.bad_lines)
        return result.requests, "batch file", None
    table = text_table(path)
    _check_lines(name, table.bad_lines)
    chosen = sample_of_table(table, wanted, options.seed)
    if len(chosen) == len(table):
        return read_at(table, chosen), "batch file", None
    told = (
        f"{SAMPLE} of whole prefix groups: {len(chosen):,} of {len(table):,} requests "
        f"({len(chosen) / len(table):.1%}) of a batch file, seed {options.seed}"
    )
    return read_at(table, chosen), told, len(table)


def _check_lines(name: str, bad_lines: Sequence[BadLine]) -> None:
    if bad_lines:
        raise UsageError(f"{name}, {bad_lines[0]}")


def _tokenized(
    name: str, requests: Sequence[PlanRequest], options: InputOptions
) -> list[TokenizedRequest]:
    has_text = any(not hasattr(request.content, "typecode") for request in requests)
    if has_text and options.tokenizer is None:
        raise UsageError(
            f"{name} has prompts of text; name the model with {options.tokenizer_option}"
        )
    try:
        tokenizer = load_tokenizer(options.tokenizer) if has_text and options.tokenizer else None
        result = tokenize_requests(requests, tokenizer)
    except TokenizerError as error:
        raise UsageError(str(error)) from None
    _check_lines(name, result.bad_lines)
    return result.requests


def _limit(name: str, place: int, item: TokenizedRequest, options: InputOptions) -> int:
    limit = item.max_tokens or options.output_tokens
    if limit is None:
        raise UsageError(f"{name}: request {place + 1} states no max_tokens; give --output-tokens")
    return limit


def _apart(requests: Sequence[TokenizedRequest]) -> list[list[int]]:
    """Prompts as lists; those of different namespaces differ from their first token on."""
    spaces = dict.fromkeys(request.namespace for request in requests)
    prompts = [list(request.tokens) for request in requests]
    if len(spaces) > 1:
        firsts: dict[tuple[bytes, int], int] = {}
        for request, prompt in zip(requests, prompts, strict=True):
            prompt[0] = firsts.setdefault((request.namespace, prompt[0]), len(firsts))
    return prompts


def _checked(batch: Batch) -> Batch:
    batch.check()
    return batch
