# SPDX-License-Identifier: Apache-2.0
"""Answers on their way into the journal: many at a time, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_batchllm.jobs.books import Books
from vllm_batchllm.jobs.journal import SYNC_EVERY_S, Journal

_MOST_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class Record:
    """An answer as it is written. index: the line it answers. error_code: what kind of error it is, None for none."""

    index: int
    packed: bytes
    error_code: str | None


class JournalWriter:
    """Appends records in groups, and enters them into the books once they are written.

    Use `run` as a task; `failed` holds what ended it early.
    """

    def __init__(self, journal: Journal, books: Books) -> None:
        self._journal, self._books = journal, books
        self._waiting: list[Record] = []
        self._came = asyncio.Event()
        self._emptied = asyncio.Event()
        self._is_closing = False
        self.failed: BaseException | None = None

    async def put(self, records: Sequence[Record]) -> None:
        """Take records; waits where far too many are not written yet. Raises what ended the writing."""
        while len(self._waiting) > _MOST_WAITING and self.failed is None:
            self._emptied.clear()
            await self._emptied.wait()
        if self.failed is not None:
            raise self.failed
        self._waiting.extend(records)
        self._came.set()

    async def run(self) -> None:
        """Write until `close` was called and nothing waits."""
        try:
            while self._waiting or not self._is_closing:
                if not self._waiting:
                    await self._pause()
                    continue
                records, self._waiting = self._waiting, []
                packed = [record.packed for record in records]
                places = await asyncio.to_thread(self._journal.append, packed)
                for record, place in zip(records, places, strict=True):
                    self._books.enter(record.index, place, len(record.packed), record.error_code)
                self._emptied.set()
            await asyncio.to_thread(self._journal.sync)
        except Exception as error:
            self.failed = error
            self._emptied.set()
            raise

    def close(self) -> None:
        """No more records will come."""
        self._is_closing = True
        self._came.set()

    async def _pause(self) -> None:
        """Wait for records; what is written and not yet on the disk gets there meanwhile."""
        self._came.clear()
        try:
            await asyncio.wait_for(self._came.wait(), SYNC_EVERY_S)
        except TimeoutError:
            await asyncio.to_thread(self._journal.sync)
