# SPDX-License-Identifier: Apache-2.0
"""The journal of a job: whole lines of JSON, appended in the order in which requests end. It is what has been done.

One process writes it, held by a lock on the file. A line that a crash has torn is cut off when it is opened next; one that
an outage of the machine has spoilt further up is taken out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic_core import from_json

from vllm_batchllm.errors import UsageError
from vllm_batchllm.failpoints import hit
from vllm_batchllm.files import replaced, sync_folder
from vllm_batchllm.log import get_logger

logger = get_logger(__name__)

SYNC_EVERY_S = 1.0
"""Lines are with the operating system at once, so that the death of the process costs none; on the disk after this long."""


class JournalLockedError(UsageError):
    """Another process writes this journal."""


class Journal:
    """An open journal.

    Raises:
        JournalLockedError: another process has it open.
        UsageError: it cannot be opened; names it and says why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open_locked(path)
        self._end = os.fstat(self._file).st_size
        self._synced_at, self._synced_end = time.monotonic(), -1

    def records(self) -> Iterator[tuple[int, bytes, dict[str, object]]]:
        """Place, bytes and content of each good line. A torn end is cut off; other bad lines are passed over and counted.

        Only to be read before anything is appended.
        """
        self.num_spoilt = 0
        position = 0
        with open(self._file, "rb", closefd=False) as stream:
            stream.seek(0)
            for raw in stream:
                content = _content(raw)
                if content is not None:
                    yield position, raw, content
                elif raw.endswith(b"\n") and raw.strip():
                    self.num_spoilt += 1
                if not raw.endswith(b"\n"):
                    self._cut(position)
                    return
                position += len(raw)

    def rewrite(self, keep: Callable[[int], bool]) -> None:
        """Only the good lines for whose places ``keep`` says so stay; the file is replaced as a whole."""
        with replaced(self.path, "journal.rewrite") as stream:
            for position, raw, _ in self.records():
                if keep(position):
                    stream.write(raw)
            # Locked before it has the name: nobody can come in between.
            _lock(stream.fileno(), self.path)
            kept_open = os.dup(stream.fileno())
        os.close(self._file)
        self._file = kept_open
        self._end = os.fstat(self._file).st_size

    def append(self, lines: Sequence[bytes]) -> list[int]:
        """Write whole lines, and return where each stands. They survive this process from then on.

        Raises:
            OSError: they could not be written; the journal is as it was before.
        """
        hit("journal.append")
        places, at = [], self._end
        for line in lines:
            places.append(at)
            at += len(line)
        try:
            hit("journal.write")
            self._write(b"".join(lines))
        except OSError:
            self._cut(self._end)
            raise
        self._end = at
        hit("journal.written")
        if time.monotonic() - self._synced_at >= SYNC_EVERY_S:
            self.sync()
        return places

    def sync(self) -> None:
        """Wait until all is on the disk."""
        if self._synced_end != self._end:
            os.fsync(self._file)
            self._synced_end = self._end
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """On the disk, and free for others."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _write(self, packed: bytes) -> None:
        view = memoryview(packed)
        at = self._end
        while view:
            written = os.pwrite(self._file, view, at)
            hit("journal.partial")
            view, at = view[written:], at + written

    def _cut(self, end: int) -> None:
        os.ftruncate(self._file, end)
        self._end = end


def _content(raw: bytes) -> dict[str, object] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        content = from_json(raw)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _open_locked(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            sync_folder(path.parent)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        try:
            _lock(descriptor, path)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has its name: whoever locked it before may have replaced it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise JournalLockedError(
                f"{path} is being written by another process; wait for it (`vllm-batchllm status` "
                "tells how far it is), or name another output"
            ) from None
        raise UsageError(f"{path} cannot be locked: {error.strerror or error}") from error
