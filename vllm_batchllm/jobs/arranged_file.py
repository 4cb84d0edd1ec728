# SPDX-License-Identifier: Apache-2.0
"""The lines of a file in the order of shared prefixes, written as a file or several: all of them or none."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.kind import check_kind
from vllm_batchllm.input.scan import scan
from vllm_batchllm.input.source import Columns, open_source
from vllm_batchllm.jobs.finish import check_output, packed
from vllm_batchllm.jobs.paths import STREAM, beside
from vllm_batchllm.jobs.progress import tell_reading
from vllm_batchllm.plan.arrange import arrange as arrange_lines
from vllm_batchllm.plan.arrange import part_paths
from vllm_batchllm.plan.parts import state_of, told_of, write_parts


def arrange_file(
    input_name: str, output: Path, num_parts: int | None = None, columns: Columns | None = None
) -> str:
    """Write the lines in order, byte for byte, each once; all parts or none. Returns what it did, in words.

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
