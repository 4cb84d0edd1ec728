# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have: the same name means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SCALE = "Divides all lengths of workloads and traces."
OUT = "Folder for the record of the results."
BLOCK_SIZE = "Tokens per KV block."

ModelOrRandom = Annotated[
    str | None, typer.Option(help="Model folder or name (default: a generated random model).")
]
NumRequests = Annotated[
    int | None,
    typer.Option(
        help="Requests (default: the workload's; all of a file, else whole prefix groups of it).",
        min=1,
    ),
]
PromptColumn = Annotated[
    str | None, typer.Option(help="Column of a Parquet file that holds prompts.")
]
MessagesColumn = Annotated[
    str | None, typer.Option(help="Column of a Parquet file that holds chats.")
]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn at random.", min=0)]
OutputTokens = Annotated[
    int | None, typer.Option(help="Output of each request of a batch file.", min=1)
]
KvBlocks = Annotated[
    int | None,
    typer.Option(help="KV blocks (default: what the workload or the device says).", min=1),
]
BlockSize = Annotated[int | None, typer.Option(help=BLOCK_SIZE, min=1)]
MaxNumSeqs = Annotated[
    int | None, typer.Option(help="Requests running at once (default: the device's).", min=1)
]
MaxNumBatchedTokens = Annotated[
    int | None, typer.Option(help="Tokens per step (default: the device's).", min=1)
]
BatchLLMOptions = Annotated[
    list[str] | None, typer.Option("--option", help="Further batchllm options, KEY=VALUE.")
]
ReportFolder = Annotated[
    Path | None, typer.Option(help="Folder for the result as one HTML page as well.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw it into a PNG file, too.")
]
