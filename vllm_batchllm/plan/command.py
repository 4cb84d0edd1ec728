# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm plan`: reads a batch file and prints its plan. Only this layer does I/O.

Exit codes: 0 done, 1 a failure while running (reading, writing), 2 bad input (file, options,
model), 130 interrupted.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from tqdm import tqdm

from vllm_batchllm.input.reader import BadLine, read_requests
from vllm_batchllm.input.request import PlanRequest
from vllm_batchllm.input.tokenize import TokenizeResult, tokenize_requests
from vllm_batchllm.input.tokenizer import (
    TokenizerError,
    check_folder,
    decode_leniently,
    load_tokenizer,
)
from vllm_batchllm.plan.analysis import Plan, make_plan
from vllm_batchllm.plan.render import plot_plan, print_plan
from vllm_batchllm.shared_options import BLOCK_SIZE, AsJson, Plot

RUNTIME_ERROR = 1
BAD_INPUT = 2
_NUM_BAD_LINES_SHOWN = 20

FileArgument = Annotated[
    Path,
    typer.Argument(
        help="JSONL file: plain prompts, chats, or OpenAI batch lines.",
        exists=True,
        dir_okay=False,
        readable=True,
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model folder or name, for its tokenizer.")
]
KvBlocksOption = Annotated[
    int | None,
    typer.Option(min=1, help="Usable KV blocks, to simulate first come, first served."),
]
KvTokensOption = Annotated[
    int | None, typer.Option(min=1, help="The same in tokens; instead of --kv-blocks.")
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Go on without bad lines.")]
TopOption = Annotated[int, typer.Option(min=0, help="How many groups to list.")]
LevelsOption = Annotated[bool, typer.Option("--levels", help="List groups inside groups.")]


def plan(
    file: FileArgument,
    model: ModelOption,
    block_size: Annotated[int, typer.Option(help=BLOCK_SIZE, min=1)] = 16,
    kv_blocks: KvBlocksOption = None,
    kv_tokens: KvTokensOption = None,
    skip_bad: SkipBadOption = False,
    as_json: AsJson = False,
    plot: Plot = None,
    top: TopOption = 10,
    levels: LevelsOption = False,
) -> None:
    """Tell what sharing prefixes can save on FILE before anything is run."""
    num_kv_blocks = _num_kv_blocks(block_size, kv_blocks, kv_tokens)
    _check_plot(plot)
    _check_model(model)
    requests, bad_lines = _read(file, skip_bad)
    tokenizer = _tokenizer(model)
    result = _tokenize(requests, tokenizer)
    bad_lines = sorted(bad_lines + result.bad_lines, key=lambda bad_line: bad_line.line)
    _report_bad_lines(file, bad_lines, skip_bad)
    if not result.requests:
        _fail(f"{file} holds no usable request: no prompt of it can be tokenised", BAD_INPUT)
    made = make_plan(
        result.requests,
        block_size,
        num_kv_blocks=num_kv_blocks,
        top=top,
        levels=levels,
        num_left_out=len(bad_lines),
        decode=partial(decode_leniently, tokenizer),
    )
    _output(made, as_json, plot)


def _num_kv_blocks(block_size: int, kv_blocks: int | None, kv_tokens: int | None) -> int | None:
    if kv_tokens is None:
        return kv_blocks
    if kv_blocks is not None:
        _fail("--kv-blocks and --kv-tokens say the same; give only one of them", BAD_INPUT)
    if kv_tokens < block_size:
        _fail(f"--kv-tokens {kv_tokens} is less than one block of {block_size} tokens", BAD_INPUT)
    return kv_tokens // block_size


def _check_plot(plot: Path | None) -> None:
    """Refuse a picture that cannot be written before the long work, not after it."""
    if plot is None:
        return
    if plot.suffix.lower() != ".png":
        _fail(f"--plot writes PNG files only, {plot} does not end in .png", BAD_INPUT)
    if not plot.parent.is_dir():
        _fail(f"the folder {plot.parent} for --plot does not exist; create it first", BAD_INPUT)
    if plot.is_dir():
        _fail(f"--plot {plot} is a folder; name a file", BAD_INPUT)


def _read(file: Path, skip_bad: bool) -> tuple[list[PlanRequest], list[BadLine]]:
    try:
        result = read_requests(file)
    except OSError as error:
        _fail(f"{file} cannot be read: {error.strerror or error}", RUNTIME_ERROR)
    except (EOFError, zlib.error) as error:
        _fail(f"{file} cannot be read: damaged gzip: {error}", RUNTIME_ERROR)
    if not result.requests or not skip_bad:
        _report_bad_lines(file, result.bad_lines, skip_bad)
    if not result.requests:
        found = "none is good" if result.bad_lines else "the file is empty"
        _fail(f"{file} holds no requests: {found}; expected one JSON object a line", BAD_INPUT)
    return result.requests, result.bad_lines


def _check_model(model: str) -> None:
    try:
        check_folder(model)
    except TokenizerError as error:
        _fail(str(error), BAD_INPUT)


def _tokenizer(model: str) -> Any:
    try:
        return load_tokenizer(model)
    except TokenizerError as error:
        _fail(str(error), BAD_INPUT)


def _tokenize(requests: Sequence[PlanRequest], tokenizer: Any) -> TokenizeResult:
    with tqdm(
        total=len(requests),
        desc="tokenising",
        unit=" requests",
        leave=False,
        disable=not sys.stderr.isatty(),
    ) as bar:
        try:
            return tokenize_requests(requests, tokenizer, bar.update)
        except TokenizerError as error:
            _fail(str(error), BAD_INPUT)


def _report_bad_lines(file: Path, bad_lines: Sequence[BadLine], skip_bad: bool) -> None:
    """Print the first bad lines with their reasons; leave unless they are to be skipped."""
    if not bad_lines:
        return
    for bad_line in bad_lines[:_NUM_BAD_LINES_SHOWN]:
        _tell(f"{file}: {bad_line}")
    if len(bad_lines) > _NUM_BAD_LINES_SHOWN:
        _tell(f"{file}: and {len(bad_lines) - _NUM_BAD_LINES_SHOWN:,} more")
    count = "1 bad line" if len(bad_lines) == 1 else f"{len(bad_lines):,} bad lines"
    if not skip_bad:
        _fail(f"{file} has {count}; mend the file or give --skip-bad", BAD_INPUT)
    _tell(f"{count} of {file} left out")


def _output(made: Plan, as_json: bool, plot: Path | None) -> None:
    if as_json:
        typer.echo(made.to_json())
    else:
        # A prompt may hold characters that the terminal's encoding lacks.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        print_plan(made, Console(file=sys.stdout))
    if plot is None:
        return
    try:
        plot_plan(made, plot)
    except OSError as error:
        _fail(f"{plot} cannot be written: {error.strerror or error}", RUNTIME_ERROR)
    _tell(f"picture written to {plot}")


def _tell(message: str) -> None:
    typer.echo(message, err=True)


def _fail(message: str, code: int) -> NoReturn:
    _tell(f"error: {message}")
    raise typer.Exit(code)
