# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vllm_batchllm.errors import UsageError
from vllm_batchllm.failpoints import hit


@contextmanager
def replaced(path: Path, name: str, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` at the end, and only if nothing failed. Links are followed.

    Args:
        name: of the failpoints in it. durable: it is on the disk before it is renamed.

    Raises:
        OSError: ``path`` cannot be written. It stays as it was.
        UsageError: it is no file, or another process replaces it at this moment.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} cannot be written: it is there and no regular file")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("x+b") as file:
            yield file
            hit(f"{name}.write")
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(partial)):
                raise UsageError(f"{path} is being written by another process as well: end one")
        hit(f"{name}.rename")
        os.replace(partial, path)
        hit(f"{name}.renamed")
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any], name: str, *, durable: bool = True) -> None:
    """Replace ``path`` by ``value`` as JSON."""
    with replaced(path, name, durable=durable) as stream:
        stream.write(json.dumps(value, indent=1).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote; None where there is nothing that can be read as that."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
