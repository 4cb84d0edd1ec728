# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm plan`: reads a batch file and prints its plan. Only this layer does I/O.

Exit codes: 0 done, 1 a failure while running (reading, writing), 2 bad input (file, options,
model), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.plain_file import plain_file, shown_name
from vllm_batchllm.input.reader import BadLine
from vllm_batchllm.input.source import Columns
from vllm_batchllm.input.tokenizer import TokenizerError, check_folder
from vllm_batchllm.plan.analysis import Plan
from vllm_batchllm.plan.kv_size import cache_of
from vllm_batchllm.plan.load import EXACT_LINES, Wanted, plan_of_file
from vllm_batchllm.plan.render import plot_plan, print_plan
from vllm_batchllm.plan.split import check_split, write_split
from vllm_batchllm.shared_options import (
    BLOCK_SIZE,
    AsJson,
    MessagesColumn,
    OutputTokens,
    Plot,
    PromptColumn,
)

RUNTIME_ERROR = 1
BAD_INPUT = 2
_NUM_BAD_LINES_SHOWN = 20

FileArgument = Annotated[
    str,
    typer.Argument(
        help="Plain prompts, chats, token ids, or OpenAI batch lines: .jsonl, .gz, .zst, .parquet; - reads standard input."
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
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help=f"Tokenise files of more than {EXACT_LINES:,} lines, too."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Device that says how large the KV cache is; with --model-shape."),
]
ShapeOption = Annotated[
    str | None,
    typer.Option(help="Model on the device: a known name, or a folder with config.json."),
]
SplitOption = Annotated[
    int | None, typer.Option(metavar="N", help="Also cut the file where least is shared, into N.")
]
OutDirOption = Annotated[Path | None, typer.Option(help="Folder for the parts of --split.")]
LevelsOption = Annotated[bool, typer.Option("--levels", help="List groups inside groups.")]


def plan(
    file: FileArgument,
    model: ModelOption,
    block_size: Annotated[int, typer.Option(help=BLOCK_SIZE, min=1)] = 16,
    kv_blocks: KvBlocksOption = None,
    kv_tokens: KvTokensOption = None,
    device: DeviceOption = None,
    model_shape: ShapeOption = None,
    output_tokens: OutputTokens = None,
    exact: ExactOption = False,
    skip_bad: SkipBadOption = False,
    as_json: AsJson = False,
    plot: Plot = None,
    top: TopOption = 10,
    levels: LevelsOption = False,
    split: SplitOption = None,
    out_dir: OutDirOption = None,
    prompt_column: PromptColumn = None,
    messages_column: MessagesColumn = None,
) -> None:
    """Tell what sharing prefixes can save on FILE before anything is run."""
    _check_plot(plot)
    _check_model(model)
    name = shown_name(file)
    try:
        cache = cache_of(
            block_size,
            kv_blocks=kv_blocks,
            kv_tokens=kv_tokens,
            device=device,
            model_shape=model_shape,
            output_tokens=output_tokens,
        )
        wanted = Wanted(model, block_size, top, levels, exact, cache)
        check_split(file, split, out_dir)
        with plain_file(file, Columns(prompt_column, messages_column)) as path:
            report = partial(_report_bad_lines, name, skip_bad=skip_bad)
            made = plan_of_file(path, name, wanted, report)
            told = write_split(path, file, split, out_dir)
    except UsageError as error:
        _fail(str(error), BAD_INPUT)
    except OSError as error:
        _fail(f"{name} cannot be read: {error.strerror or error}", RUNTIME_ERROR)
    _output(made, as_json, plot)
    if told:
        _tell(told)


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


def _check_model(model: str) -> None:
    try:
        check_folder(model)
    except TokenizerError as error:
        _fail(str(error), BAD_INPUT)


def _report_bad_lines(file: str, bad_lines: Sequence[BadLine], *, skip_bad: bool) -> None:
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
