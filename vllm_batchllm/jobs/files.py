# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vllm_batchllm.jobs.failpoints import hit


@contextmanager
def replaced(path: Path, name: str, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content becomes ``path`` when the block ends well; else ``path`` stays as it was.

    Args:
        name: of the failpoints around it. durable: wait until it is on the disk.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w+b") as stream:
            yield stream
            hit(f"{name}.write")
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        hit(f"{name}.rename")
        os.replace(beside, path)
        hit(f"{name}.renamed")
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
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
