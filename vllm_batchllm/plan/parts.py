# SPDX-License-Identifier: Apache-2.0
"""Lines of a file written in another order into several, byte for byte, and what that brings in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import BinaryIO

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.scan import Input
from vllm_batchllm.input.source import written_whole
from vllm_batchllm.plan.arrange import Arrangement
from vllm_batchllm.prefix.prefix_order import Ints

_PIECE_BYTES = 2**20
Packed = Callable[[Path, BinaryIO], AbstractContextManager[BinaryIO]]
"""What packs the lines of a file, by its name."""


def unpacked(path: Path, file: BinaryIO) -> AbstractContextManager[BinaryIO]:
    """Nothing is packed."""
    return nullcontext(file)


def state_of(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    return status.st_size, status.st_mtime_ns


def write_parts(
    source: Input, parts: Sequence[Ints], paths: Sequence[Path], stack: ExitStack, packed: Packed
) -> None:
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


def told_of(source: Input, done: Arrangement, paths: Sequence[Path]) -> str:
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
