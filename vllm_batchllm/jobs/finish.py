# SPDX-License-Identifier: Apache-2.0
"""OUTPUT of a job from its journal: the answers in the order of the input, there at once or not at all."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.parquet_source import needed
from vllm_batchllm.input.source import ZSTD_SUFFIXES, written_whole
from vllm_batchllm.jobs.parquet_finish import Answers, check_columns, write_parquet

_BUFFER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FinalOrder:
    """Where in the journal the answer to the n-th line of the input stands, in bytes.

    Attributes:
        offsets: where it begins; int64[n]. What stands there is not read where the length is -1.
        lengths: its length, with or without its line feed; int64[n]. -1: it has none.
    """

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)


def check_output(output: Path, parquet_input: Path | None = None) -> None:
    """Find out before the work what would stop `write_final` after it.

    Raises:
        UsageError: OUTPUT is no file that can be written, is INPUT itself, needs a package that is
            missing, or has columns that are named as ours.
    """
    _check_other_file(output, "INPUT", parquet_input)
    suffix, folder = output.suffix.lower(), Path(os.path.realpath(output)).parent
    if output.exists() and not output.is_file():
        raise UsageError(f"{output} cannot be written: it is there and no regular file")
    if not folder.is_dir():
        raise UsageError(f"{output} cannot be written: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{output} cannot be written: no right to write into {folder}")
    if suffix in ZSTD_SUFFIXES:
        needed("zstandard", f"{output}: a file packed by zstd")
    if suffix == ".parquet":
        check_columns(output, parquet_input)


def write_final(
    journal: Path, output: Path, order: FinalOrder, parquet_input: Path | None = None
) -> None:
    """Write the answers in the order of the input to `output`, which is replaced at the end.

    The name says how: `.gz`, `.zst` and `.zstd` pack the lines, `.parquet` makes a table of them, and
    all else is the journal's lines as they are. Lines of the input without an answer are left out; in a
    table they are rows if `parquet_input` gives the input's own columns. Memory holds some MiB of lines
    beside the order.

    Raises:
        UsageError: the journal does not hold what `order` says, or OUTPUT cannot be written. Both
            are as they were before.
    """
    for name, other in (("the journal", journal), ("INPUT", parquet_input)):
        _check_other_file(output, name, other)
    with _opened(journal) as stream, written_whole(output, "output") as file:
        answers = Answers(len(order), lambda: _answers(journal, stream, order))
        if output.suffix.lower() == ".parquet":
            write_parquet(file, answers, output, parquet_input)
            return
        with packed(output, file) as target:
            target.writelines(line + b"\n" for line in answers.read() if line is not None)


def _check_other_file(output: Path, name: str, other: Path | None) -> None:
    if other is not None and os.path.realpath(output) == os.path.realpath(other):
        raise UsageError(f"{output} is both OUTPUT and {name}: give OUTPUT another name")


def _answers(journal: Path, stream: BinaryIO, order: FinalOrder) -> Iterator[bytes | None]:
    """Yield the answer to each line of the input, without its line feed."""
    descriptor = stream.fileno()
    for offset, length in zip(order.offsets, order.lengths, strict=True):
        yield None if length < 0 else _line(journal, descriptor, int(offset), int(length))


def _line(journal: Path, descriptor: int, offset: int, length: int) -> bytes:
    try:
        line = os.pread(descriptor, length, offset)
    except OSError as error:
        raise UsageError(f"{journal} cannot be read: {error.strerror or error}") from None
    is_whole = len(line) == length
    line = line.removesuffix(b"\n")
    if not (is_whole and line.startswith(b"{") and line.endswith(b"}") and b"\n" not in line):
        raise UsageError(
            f"{journal} is damaged: no answer of {length:,} bytes stands at byte {offset:,}; run the "
            "job again, so that it reads the journal anew"
        )
    return line


@contextmanager
def _opened(journal: Path) -> Iterator[BinaryIO]:
    try:
        stream = journal.open("rb")
    except OSError as error:
        raise UsageError(f"{journal} cannot be read: {error.strerror or error}") from None
    with stream:
        yield stream


@contextmanager
def packed(output: Path, file: BinaryIO) -> Iterator[BinaryIO | io.BufferedWriter]:
    """What lines are written to, so that ``file`` holds them as the name of ``output`` says: as they are, or packed by gzip or zstd."""
    suffix = output.suffix.lower()
    if suffix == ".gz":  # neither a name nor a time in it: equal answers are equal files
        packer: Any = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
    elif suffix in ZSTD_SUFFIXES:
        zstandard = needed("zstandard", f"{output}: a file packed by zstd")
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        packer = compressor.stream_writer(file, closefd=False)
    else:
        yield file
        return
    with packer, io.BufferedWriter(packer, _BUFFER_BYTES) as target:
        yield target
