# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm arrange`: the lines of a file in the order of shared prefixes, for engines that take them as they stand."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.kind import check_kind
from vllm_batchllm.input.scan import scan
from vllm_batchllm.input.source import Columns, open_source
from vllm_batchllm.jobs.command import EXIT_USAGE
from vllm_batchllm.jobs.finish import check_output, packed
from vllm_batchllm.jobs.paths import STREAM, beside
from vllm_batchllm.jobs.progress import tell_reading
from vllm_batchllm.plan.arrange import arrange as arrange_lines
from vllm_batchllm.plan.arrange import part_paths
from vllm_batchllm.plan.parts import state_of, told_of, write_parts


def arrange(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSONL of OpenAI batch lines or plain prompts; .gz, .zst, .parquet; - reads standard input.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Where its lines go; .gz and .zst are packed.")
    ],
    parts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Cut them where it is cheap into N files of about equal work, OUTPUT-00000-of-0000N and so on.",
        ),
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column of a Parquet file that holds prompts.")
    ] = None,
    messages_column: Annotated[
        str | None, typer.Option(help="Column of a Parquet file that holds chats.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of a Parquet file that names its rows.")
    ] = None,
) -> None:
    """Write the lines of a file in the order of shared prefixes, byte for byte, each once."""
    try:
        columns = Columns(prompt_column, messages_column, id_column)
        told = arrange_file(source, output, parts, columns)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    print(told, file=sys.stderr)


def arrange_file(
    input_name: str, output: Path, num_parts: int | None = None, columns: Columns | None = None
) -> str:
    """Write what ``arrange`` promises, all parts or none. Returns what it did, in words.

    Raises:
        UsageError: INPUT cannot be read, OUTPUT cannot be written, or one is the other.
    """
    paths = part_paths(output, _checked(output, num_parts))
    for path in paths:
        _check_other(input_name, path)
    spool = output.with_name(f".{output.name}.input.jsonl")
    try:
        path = open_source(input_name, spool, columns or Columns())
        check_kind(path, input_name)
        before = state_of(path)
        found = scan(path, on_progress=tell_reading)
        arrangement = arrange_lines(found, len(paths))
        with ExitStack() as stack:
            write_parts(found, arrangement.parts, paths, stack, packed)
            if state_of(path) != before:
                raise UsageError(f"{path} has changed while it was read: start again")
    finally:
        for left in (spool, beside(spool, "json")):
            left.unlink(missing_ok=True)
    return told_of(found, arrangement, paths)


def _checked(output: Path, num_parts: int | None) -> int | None:
    if num_parts is not None and num_parts < 1:
        raise UsageError(f"--parts {num_parts}: there must be 1 part or more")
    if str(output) == STREAM:
        raise UsageError("standard output cannot be written whole or not at all; name a file")
    if output.suffix.lower() == ".parquet":
        raise UsageError(f"{output}: lines are kept as they are and make no table; name a .jsonl")
    return num_parts


def _check_other(input_name: str, path: Path) -> None:
    check_output(path)
    is_there = input_name != STREAM and os.path.exists(input_name) and path.exists()
    if is_there and os.path.samefile(input_name, path):
        raise UsageError(f"INPUT and OUTPUT are the same file, {path}; name another output")
