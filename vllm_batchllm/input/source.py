# SPDX-License-Identifier: Apache-2.0
"""INPUT of a job as a plain JSONL file that can be read again at any offset.

Packed files, Parquet and standard input are unpacked into a *spool*, a piece at a time. A small file
beside it (its name and `.json`) says what it was made from, so that a job that goes on uses it again.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

from vllm_batchllm.errors import UsageError
from vllm_batchllm.files import replaced
from vllm_batchllm.input.parquet_source import Columns, needed, parquet_lines
from vllm_batchllm.messages import clip

__all__ = ["Columns", "is_current", "open_source", "written_whole"]

STANDARD_INPUT = "-"
ZSTD_SUFFIXES = (".zst", ".zstd")
_CHUNK_BYTES = 2**18
_ZSTD_CHUNK_BYTES = 2**12
"""Four bytes of zstd can hold 128 kiB, so what one piece unpacks to stays below 128 MiB."""


def open_source(input_name: str, spool: Path, columns: Columns) -> Path:
    """Return the file to be read for INPUT: itself, or `spool` with what it holds as plain lines.

    A spool that was made from the same file (path, size, time, columns) is used again, but for
    standard input and pipes, which are always read. A spool is there whole or not at all.

    Raises:
        UsageError: INPUT is missing, is a directory, may not be read, is damaged, cut off or changed
            meanwhile, lacks a column, or needs a package; or the spool cannot be written.
    """
    if input_name == STANDARD_INPUT:
        _check_no_columns("standard input", columns)
        _spool(spool, _chunks("standard input", _standard_input), None)
        return spool
    path = Path(input_name)
    status = _status(path)
    unpack = _unpacker(path, columns)
    is_file = stat.S_ISREG(status.st_mode)
    if unpack is None and is_file:
        return path
    if is_file and status.st_size == 0:
        raise UsageError(f"{path} cannot be read: it is empty, no {path.suffix} file")
    if not is_current(path, spool, columns):
        chunks = (unpack or _plain_chunks)(path)
        _spool(spool, chunks, _origin(path, status, columns) if is_file else None)
    return spool


def is_current(path: Path, spool: Path, columns: Columns) -> bool:
    """Whether `spool` was made from this very state of the file, with these columns."""
    try:
        status = path.stat()
        made_from = json.loads(_note(spool).read_bytes())
        spool_bytes = spool.stat().st_size
    except (OSError, ValueError, RecursionError):
        return False
    wanted = {**_origin(path, status, columns), "spool_bytes": spool_bytes}
    return stat.S_ISREG(status.st_mode) and bool(made_from == wanted)


@contextmanager
def written_whole(path: Path, name: str) -> Iterator[BinaryIO]:
    """As `replaced`, for files that the user has named.

    Raises:
        UsageError: `path` cannot be written (disk full, no rights, no folder), or is no file.
    """
    try:
        with replaced(path, name) as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def _spool(spool: Path, chunks: Iterable[bytes], origin: dict[str, Any] | None) -> None:
    """Write the spool and then its note: a note never stands beside another spool than its own."""
    note = _note(spool)
    try:
        note.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{note} cannot be removed: {error.strerror or error}") from error
    with written_whole(spool, "spool") as file:
        file.writelines(chunks)
        if origin is not None:
            _check_unchanged(origin)
        spool_bytes = file.tell()
    if origin is not None:
        with written_whole(note, "spool_note") as file:
            file.write(json.dumps({**origin, "spool_bytes": spool_bytes}).encode())


def _note(spool: Path) -> Path:
    return spool.with_name(f"{spool.name}.json")


def _origin(path: Path, status: os.stat_result, columns: Columns) -> dict[str, Any]:
    return {
        "source": os.path.abspath(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "columns": asdict(columns),
    }


def _check_unchanged(origin: dict[str, Any]) -> None:
    status = _status(Path(origin["source"]))
    if (status.st_size, status.st_mtime_ns) != (origin["size"], origin["mtime_ns"]):
        raise UsageError(f"{origin['source']} has changed while it was read: start again")


def _status(path: Path) -> os.stat_result:
    """The file's status, once it is certain that it can be opened."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path} cannot be read: it is a directory; name a file")
        if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            path.open("rb").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    return status


def _unpacker(path: Path, columns: Columns) -> Callable[[Path], Iterator[bytes]] | None:
    """How the file is unpacked, by its name; None where it is read as it is."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        if not path.is_file():
            raise UsageError(f"{path} cannot be read: Parquet is not read from pipes; name a file")
        return lambda file: parquet_lines(file, columns)
    _check_no_columns(path, columns)
    if suffix == ".gz":
        return _gzip_chunks
    return _zstd_chunks if suffix in ZSTD_SUFFIXES else None


def _check_no_columns(name: object, columns: Columns) -> None:
    for field, column in asdict(columns).items():
        if column is not None:
            raise UsageError(
                f"--{field}-column {clip(column)}: {name} has no columns; leave the option out, "
                "or give a file whose name ends in .parquet"
            )


def _standard_input() -> AbstractContextManager[BinaryIO]:
    if sys.stdin is None:
        raise UsageError("standard input cannot be read: it is closed; name a file")
    return nullcontext(sys.stdin.buffer)


def _plain_chunks(path: Path) -> Iterator[bytes]:
    """A pipe or a device, which cannot be read a second time."""
    return _chunks(path, lambda: path.open("rb"))


def _gzip_chunks(path: Path) -> Iterator[bytes]:
    return _chunks(path, lambda: cast(BinaryIO, gzip.open(path, "rb")))


def _chunks(
    name: object, opened: Callable[[], AbstractContextManager[BinaryIO]]
) -> Iterator[bytes]:
    """Yield what there is to read. Raises UsageError, which names it, where that fails."""
    try:
        with opened() as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{name} cannot be read: damaged gzip: {error}") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Yield what the frames of the file hold, one after the other."""
    zstandard = needed("zstandard", f"{path}: a file packed by zstd")
    unpacker, frame = zstandard.ZstdDecompressor(), None
    try:
        with path.open("rb") as stream:
            while data := stream.read(_ZSTD_CHUNK_BYTES):
                while data:
                    frame = frame or unpacker.decompressobj()
                    yield frame.decompress(data)
                    data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise UsageError(f"{path} cannot be read: damaged zstd: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    if frame is not None:
        raise UsageError(f"{path} cannot be read: damaged zstd: it ends within a frame")
