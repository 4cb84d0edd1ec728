# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm arrange`: the lines of a file in the order of shared prefixes, for engines that take them as they stand.

Exit codes: 0 done, 64 wrong use, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vllm_batchllm.errors import UsageError
from vllm_batchllm.jobs.command import EXIT_USAGE
from vllm_batchllm.shared_options import MessagesColumn, PromptColumn


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
    prompt_column: PromptColumn = None,
    messages_column: MessagesColumn = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of a Parquet file that names its rows (default: their numbers)."),
    ] = None,
) -> None:
    """Write the lines of a file in the order of shared prefixes, byte for byte, each once."""
    from vllm_batchllm.input.source import Columns
    from vllm_batchllm.jobs.arranged_file import arrange_file

    try:
        columns = Columns(prompt_column, messages_column, id_column)
        told = arrange_file(source, output, parts, columns)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    print(told, file=sys.stderr)
