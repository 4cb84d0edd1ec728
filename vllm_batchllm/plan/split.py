# SPDX-License-Identifier: Apache-2.0
"""`plan --split N`: the file cut into N where least is shared, in the order of prefixes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.plain_file import shown_name
from vllm_batchllm.input.scan import scan
from vllm_batchllm.input.source import STANDARD_INPUT
from vllm_batchllm.plan.arrange import arrange, part_paths
from vllm_batchllm.plan.parts import state_of, told_of, unpacked, write_parts


def check_split(input_name: str, num_parts: int | None, out_dir: Path | None) -> None:
    """Raise UsageError before the long work if the parts cannot be written."""
    if num_parts is None and out_dir is None:
        return
    if num_parts is None:
        raise UsageError(f"--out-dir {out_dir} is for parts; give --split N, too")
    if num_parts < 1:
        raise UsageError(f"--split {num_parts}: there must be 1 part or more")
    if out_dir is None:
        raise UsageError(f"--split {num_parts} needs a folder for the parts; give --out-dir, too")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out-dir {out_dir} cannot be made: {error.strerror or error}") from None
    for path in _paths(input_name, num_parts, out_dir):
        if path.exists() and Path(input_name).exists() and os.path.samefile(path, input_name):
            raise UsageError(
                f"--out-dir {out_dir}: the part {path} is the input; name another folder"
            )


def write_split(
    path: Path, input_name: str, num_parts: int | None, out_dir: Path | None
) -> str | None:
    """Write all parts of the plain file at `path`, or none. Returns what was done, in words; None if nothing was asked.

    Raises:
        UsageError: a part cannot be written, or the file has changed meanwhile.
    """
    if num_parts is None or out_dir is None:
        return None
    before = state_of(path)
    found = scan(path)
    arrangement = arrange(found, num_parts)
    paths = _paths(input_name, num_parts, out_dir)
    with ExitStack() as stack:
        write_parts(found, arrangement.parts, paths, stack, unpacked)
        if state_of(path) != before:
            raise UsageError(f"{shown_name(input_name)} has changed while it was read: start again")
    return told_of(found, arrangement, paths)


def _paths(input_name: str, num_parts: int, out_dir: Path) -> list[Path]:
    stem = "input" if input_name == STANDARD_INPUT else Path(input_name).name.partition(".")[0]
    return part_paths(out_dir / f"{stem or 'input'}.jsonl", num_parts)
