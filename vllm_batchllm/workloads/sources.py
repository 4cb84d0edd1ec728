# SPDX-License-Identifier: Apache-2.0
"""What is simulated: a workload by name, a batch file, or a trace."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.reader import read_requests
from vllm_batchllm.input.request import PlanRequest
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

FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".gz")


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How a batch is drawn or read.

    scale: divides all lengths (not those of batch files). num_requests: of a workload, or at most
    so many of a file; None for its own number. tokenizer: for batch files with text, named by `tokenizer_option`.
    output_tokens: of each request of a batch file, up to its own limit, which is what the engine
    knows; None takes the limit as the length. trace_block_size: prompt tokens for each id of a trace.
    """

    scale: float = 1.0
    num_requests: int | None = None
    seed: int = 0
    tokenizer: str | None = None
    output_tokens: int | None = None
    trace_block_size: int = TRACE_BLOCK_SIZE
    tokenizer_option: str = "--tokenizer"


def is_file(source: str) -> bool:
    """Whether `source` is an existing file or named like one, and no workload."""
    # os.path, not Path: that raises for names which no file can have.
    return os.path.isfile(source) or source.endswith(FILE_SUFFIXES)


def check_source(source: str) -> None:
    """Raise UsageError for a workload that is unknown or a file that is not there, before anything is read."""
    if not is_file(source):
        resolve_name(source)
    elif not os.path.exists(source):
        raise UsageError(f"{source} cannot be read: No such file or directory")


def load_batch(source: str, options: InputOptions) -> Batch:
    """The batch that `source` names: an existing file, or else a workload.

    Raises:
        UsageError: no such workload, a file that cannot be read, a line that is no request, or a
            scale that is none.
    """
    if not (math.isfinite(options.scale) and options.scale > 0):
        raise UsageError(f"scale must be a number above 0, not {options.scale:g}")
    path = Path(source)
    if not is_file(source):
        resolve_name(source)
        return make_workload(
            source,
            scale=options.scale,
            num_requests=options.num_requests,
            seed=options.seed,
            vocab_size=2**17,
        )
    try:
        is_trace = _is_trace(path)
        return _trace(path, options) if is_trace else _batch_file(path, options)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: damaged gzip: {error}") from None


def _is_trace(path: Path) -> bool:
    """Whether the first line that is not blank has the `hash_ids` of a trace."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        first = next((line for line in stream if line.strip()), b"")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "hash_ids" in record


def _trace(path: Path, options: InputOptions) -> Batch:
    trace_size = options.trace_block_size
    block_size = round(trace_size / options.scale)
    if not 1 <= block_size <= trace_size:
        raise UsageError(
            f"a scale of {options.scale:g} makes blocks of {block_size} tokens out of the "
            f"trace's {trace_size}; give 1 to {trace_size}"
        )
    try:
        requests = _renumbered(read_trace(path, options.num_requests, trace_size))
    except TraceError as error:
        raise UsageError(str(error)) from None
    if not requests:
        raise UsageError(f"{path} holds no requests")
    return _checked(
        Batch(
            name=path.name,
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


def _batch_file(path: Path, options: InputOptions) -> Batch:
    result = read_requests(path)
    if result.bad_lines:
        raise UsageError(f"{path}, {result.bad_lines[0]}")
    tokenized = _tokenized(path, result.requests[: options.num_requests], options)
    if not tokenized:
        raise UsageError(f"{path} holds no requests")
    limits = [_limit(path, place, item, options) for place, item in enumerate(tokenized)]
    wanted = options.output_tokens
    lengths = limits if wanted is None else [min(limit, wanted) for limit in limits]
    return _checked(
        Batch(
            name=path.name,
            prompts=_apart(tokenized),
            output_lens=lengths,
            lengths_known=lengths == limits,
            description="batch file",
        )
    )


def _tokenized(
    path: Path, requests: Sequence[PlanRequest], options: InputOptions
) -> list[TokenizedRequest]:
    has_text = any(not hasattr(request.content, "typecode") for request in requests)
    if has_text and options.tokenizer is None:
        raise UsageError(
            f"{path} has prompts of text; name the model with {options.tokenizer_option}"
        )
    try:
        tokenizer = load_tokenizer(options.tokenizer) if has_text and options.tokenizer else None
        result = tokenize_requests(requests, tokenizer)
    except TokenizerError as error:
        raise UsageError(str(error)) from None
    if result.bad_lines:
        raise UsageError(f"{path}, {result.bad_lines[0]}")
    return result.requests


def _limit(path: Path, place: int, item: TokenizedRequest, options: InputOptions) -> int:
    limit = item.max_tokens or options.output_tokens
    if limit is None:
        raise UsageError(f"{path}: request {place + 1} states no max_tokens; give --output-tokens")
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
