# SPDX-License-Identifier: Apache-2.0
"""What a command reads, whatever packs it, as a plain file that is gone afterwards."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.kind import check_kind
from vllm_batchllm.input.source import STANDARD_INPUT, Columns, open_source

NO_COLUMNS = Columns()


@contextmanager
def plain_file(input_name: str, columns: Columns = NO_COLUMNS) -> Iterator[Path]:
    """The lines of INPUT in a plain file: itself, or what .gz, .zst, .parquet, a pipe or `-` hold.

    Raises:
        UsageError: it cannot be read, is damaged, lacks a column, or is of another kind; one sentence.
    """
    if input_name == STANDARD_INPUT and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal; pipe a file into it, or name one")
    with tempfile.TemporaryDirectory(prefix="vllm-batchllm-") as folder:
        path = open_source(input_name, Path(folder) / "input.jsonl", columns)
        check_kind(path, shown_name(input_name))
        yield path


def shown_name(input_name: str) -> str:
    """What messages call INPUT."""
    return "standard input" if input_name == STANDARD_INPUT else input_name
