# SPDX-License-Identifier: Apache-2.0
"""A plan from a plain file: exact where it is small, estimated where tokenising it would take long."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.reader import BadLine, read_lines
from vllm_batchllm.input.request import PlanRequest
from vllm_batchllm.input.text_table import text_table
from vllm_batchllm.input.tokenize import TokenizeResult, tokenize_requests
from vllm_batchllm.input.tokenizer import TokenizerError, decode_leniently, load_tokenizer
from vllm_batchllm.plan.analysis import Plan, make_plan
from vllm_batchllm.plan.estimate import estimate_plan
from vllm_batchllm.plan.judge import Cache, judged, judged_text

EXACT_LINES = 20_000
"""Up to so many lines a file is tokenised as a whole; that takes a minute or so."""
EXACT_BYTES = 256 * 2**20
"""And up to so many bytes."""

OnBadLines = Callable[[Sequence[BadLine]], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be told. model: of the tokenizer. cache: that the batch runs with; None for not known."""

    model: str
    block_size: int
    top: int
    levels: bool = False
    is_exact: bool = False
    cache: Cache | None = None


def plan_of_file(path: Path, name: str, wanted: Wanted, on_bad_lines: OnBadLines) -> Plan:
    """Read and analyse a plain file.

    Args:
        name: what messages call it. on_bad_lines: given lines that are no requests, in order; it raises, or returns
            if they are to be left out.

    Raises:
        OSError: the file cannot be read.
        UsageError: it holds no request, or there is no tokenizer.
    """
    requests, bad_lines, is_whole = _read(path, None if wanted.is_exact else EXACT_LINES)
    if not is_whole:
        if wanted.levels:
            raise UsageError(
                f"--levels needs tokens, and {name} is so large that it is planned on text; give --exact, too"
            )
        return _estimated(path, name, wanted, on_bad_lines)
    if bad_lines:
        on_bad_lines(bad_lines)
    _check_some(name, len(requests), len(bad_lines))
    return _exact(name, requests, bad_lines, wanted, on_bad_lines)


def _read(path: Path, most: int | None) -> tuple[list[PlanRequest], list[BadLine], bool]:
    """Requests and bad lines, and whether that is the whole file: of a large one it is not."""
    requests: list[PlanRequest] = []
    bad_lines: list[BadLine] = []
    if most is not None and os.path.getsize(path) > EXACT_BYTES:
        return requests, bad_lines, False
    for number, line in enumerate(read_lines(path)):
        if number == most:
            return requests, bad_lines, False
        if isinstance(line.content, BadLine):
            bad_lines.append(line.content)
        else:
            requests.append(line.content)
    return requests, bad_lines, True


def _exact(
    name: str,
    requests: Sequence[PlanRequest],
    bad_lines: Sequence[BadLine],
    wanted: Wanted,
    on_bad_lines: OnBadLines,
) -> Plan:
    tokenizer = _tokenizer(wanted.model)
    result = _tokenize(requests, tokenizer)
    everything = sorted([*bad_lines, *result.bad_lines], key=lambda bad_line: bad_line.line)
    if result.bad_lines:
        on_bad_lines(everything)
    if not result.requests:
        raise UsageError(f"{name} holds no usable request: no prompt of it can be tokenised")
    cache = wanted.cache
    made = make_plan(
        result.requests,
        wanted.block_size,
        num_kv_blocks=None if cache is None else cache.num_kv_blocks,
        top=wanted.top,
        levels=wanted.levels,
        num_left_out=len(everything),
        decode=partial(decode_leniently, tokenizer),
    )
    return made if cache is None else judged(made, result.requests, cache)


def _estimated(path: Path, name: str, wanted: Wanted, on_bad_lines: OnBadLines) -> Plan:
    with _bar(os.path.getsize(path), "reading", "B") as bar:
        table = text_table(path, bar.update)
    if table.bad_lines:
        on_bad_lines(table.bad_lines)
    _check_some(name, len(table), len(table.bad_lines))
    tokenizer = _tokenizer(wanted.model)
    cache = wanted.cache
    try:
        estimate = estimate_plan(
            table,
            wanted.block_size,
            lambda requests: _tokenize(requests, tokenizer),
            top=wanted.top,
            num_kv_blocks=None if cache is None else cache.num_kv_blocks,
        )
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    if estimate.bad_lines:
        on_bad_lines(estimate.bad_lines)
        left_out = len(table.bad_lines) + len(estimate.bad_lines)
        estimate = replace(estimate, plan=replace(estimate.plan, num_left_out=left_out))
    return estimate.plan if cache is None else judged_text(estimate, cache)


def _check_some(name: str, num_requests: int, num_bad: int) -> None:
    if not num_requests:
        found = "none is good" if num_bad else "the file is empty"
        raise UsageError(f"{name} holds no requests: {found}; expected one JSON object a line")


def _tokenizer(model: str) -> Any:
    try:
        return load_tokenizer(model)
    except TokenizerError as error:
        raise UsageError(str(error)) from None


def _tokenize(requests: Sequence[PlanRequest], tokenizer: Any) -> TokenizeResult:
    with _bar(len(requests), "tokenising", " requests") as bar:
        try:
            return tokenize_requests(requests, tokenizer, bar.update)
        except TokenizerError as error:
            raise UsageError(str(error)) from None


def _bar(total: int, what: str, unit: str) -> Any:
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=True,
        leave=False,
        disable=not sys.stderr.isatty(),
    )
