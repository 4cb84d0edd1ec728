# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm arrange`: the lines of a file in the order of shared prefixes, for engines that take them as they stand."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.scan import Input, scan
from vllm_batchllm.input.source import Columns, open_source, written_whole
from vllm_batchllm.jobs.command import EXIT_USAGE
from vllm_batchllm.jobs.finish import check_output, packed
from vllm_batchllm.jobs.paths import STREAM, beside
from vllm_batchllm.jobs.progress import tell_reading
from vllm_batchllm.plan.arrange import Arrangement, part_paths
from vllm_batchllm.plan.arrange import arrange as arrange_lines
from vllm_batchllm.prefix.prefix_order import Ints

_PIECE_BYTES = 2**20


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
        before = _state(path)
        found = scan(path, on_progress=tell_reading)
        arrangement = arrange_lines(found, len(paths))
        with ExitStack() as stack:
            _write(found, arrangement.parts, paths, stack)
            if _state(path) != before:
                raise UsageError(f"{path} has changed while it was read: start again")
    finally:
        for left in (spool, beside(spool, "json")):
            left.unlink(missing_ok=True)
    return _told(found, arrangement, paths)


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


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    return status.st_size, status.st_mtime_ns


def _write(source: Input, parts: Sequence[Ints], paths: Sequence[Path], stack: ExitStack) -> None:
    """Write all parts; they take their names when ``stack`` is left, and only if all of them are on the disk."""
    try:
        stream = stack.enter_context(source.path.open("rb"))
    except OSError as error:
        raise UsageError(f"{source.path} cannot be read: {error.strerror or error}") from None
    for lines, path in zip(parts, paths, strict=True):
        file = stack.enter_context(written_whole(path, "part"))
        with packed(path, file) as target:
            for index in lines.tolist():
                target.writelines(_line(source, stream.fileno(), index))
        file.flush()
        os.fsync(file.fileno())


def _line(source: Input, descriptor: int, index: int) -> Iterator[bytes]:
    """The bytes of a line, in pieces, and its line feed, which the last one of a file may lack."""
    at = int(source.offsets[index])
    end = at + int(source.lengths[index])
    piece = b""
    while at < end:
        try:
            piece = os.pread(descriptor, min(end - at, _PIECE_BYTES), at)
        except OSError as error:
            raise UsageError(f"{source.path} cannot be read: {error.strerror or error}") from None
        if not piece:
            raise UsageError(f"{source.path} has changed while it was read: start again")
        yield piece
        at += len(piece)
    if not piece.endswith(b"\n"):
        yield b"\n"


def _told(source: Input, done: Arrangement, paths: Sequence[Path]) -> str:
    num_bad = int(source.is_bad.sum())
    bad = f" ({num_bad:,} of them no requests, which come first)" if num_bad else ""
    where = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files, {paths[0]} and so on"
    whole = max(done.text_bytes, 1)
    before, after = done.shared_before / whole, done.shared_after / whole
    told = [
        f"{len(source):,} lines{bad} in {where}",
        f"of {done.text_bytes / 1e6:,.1f} MB of prompt text shared with the line before: {before:.1%}, now {after:.1%}",
    ]
    if len(paths) > 1:
        told.append(
            f"cut into parts: {done.cut_bytes / whole:.2%} of the text ({done.cut_bytes / 1e3:,.1f} kB) is computed once more; "
            f"the largest part has {done.largest:.2f} times the work of the mean"
        )
    num_empty = int((done.edges[1:] == done.edges[:-1]).sum())
    if num_empty and len(source):
        told.append(f"{num_empty:,} parts are empty: more of them would not end sooner")
    return "\n".join(told)
