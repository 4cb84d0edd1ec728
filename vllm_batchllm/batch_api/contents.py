# SPDX-License-Identifier: Apache-2.0
"""The contents of files, and the journals of batches: all that the Batch API has on disk.

Names are made from ids that this server has drawn; no part of a path comes from a request. A
content is there whole or not at all: it is written under another name, synced, and renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")
PART = ".part"
LEFT_OVER_S = 3600.0
"""Age from which on what belongs to nobody is removed, seconds."""


class Contents:
    """The folder of a Batch API, made where it is missing.

    Raises:
        OSError: it cannot be made, or nothing can be written there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files, self._batches = directory / "files", directory / "batches"
        for folder in (self._files, self._batches):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.begin().abandon()  # says now what the first upload would meet

    def file(self, file_id: str) -> Path:
        """Where the content of a file is."""
        return self._files / _known(file_id)

    def journal(self, batch_id: str) -> Path:
        """Where the journal of a batch is."""
        return self._batches / f"{_known(batch_id)}.jsonl"

    def begin(self) -> Part:
        """A content that comes in pieces."""
        return Part(self._files / f"{secrets.token_hex(8)}{PART}")

    def keep(self, part: Part, file_id: str) -> None:
        """Let a whole content be that of a file. Raises OSError; then the part is gone."""
        part.finish(self.file(file_id))

    def remove(self, file_id: str) -> None:
        """Give up a content, if it is there."""
        self.file(file_id).unlink(missing_ok=True)

    def forget_journal(self, batch_id: str) -> None:
        """Give up the journal of a batch and what lies beside it under its name."""
        for path in self._batches.glob(f"{_known(batch_id)}.*"):
            path.unlink(missing_ok=True)

    def left_over(self, now: float) -> Iterator[str]:
        """Ids of old contents, to be asked whether somebody knows them; old parts are removed."""
        for path in self._files.iterdir():
            try:
                is_old = now - path.stat().st_mtime > LEFT_OVER_S
                if is_old and path.suffix == PART:
                    path.unlink()
                elif is_old and ID.fullmatch(path.name):
                    yield path.name
            except FileNotFoundError:
                continue


class Part:
    """A content that is being written; closed by :meth:`finish` or :meth:`abandon`."""

    def __init__(self, path: Path) -> None:
        self.num_bytes = 0
        self._path = path
        self._file = open(path, "xb", opener=_private)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Append. Raises OSError, as where no space is left; :meth:`abandon` it then."""
        self._file.write(data)
        self.num_bytes += len(data)

    def finish(self, path: Path) -> None:
        """Be at ``path``, whole and on disk. Raises OSError; then nothing is left."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._path, path)
            sync_folder(path.parent)
        except OSError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # what could not be written is not wanted
            self._file.close()
        self._path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _known(name: str) -> str:
    """``name``, which must be an id of ours.

    Raises:
        ValueError: it is none, and would be a path of somebody else's choice.
    """
    if not ID.fullmatch(name):
        raise ValueError("not an id of a file or batch")
    return name
