# SPDX-License-Identifier: Apache-2.0
"""One input and its journal: planned on text, fed in the order of shared prefixes, every line answered once.

What serves the lines comes from outside, so that one engine, many, and a server's Batch API are driven alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from vllm_batchllm.input.line import NO_DEFAULTS, LineDefaults
from vllm_batchllm.input.scan import MAX_LINE_BYTES, Input, LineReader, scan
from vllm_batchllm.input.text_plan import Followers, TextPlan, make_plan, repeated_ids
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.books import Books, JobCounts
from vllm_batchllm.jobs.entries import Entries
from vllm_batchllm.jobs.feed import Flow, Window
from vllm_batchllm.jobs.feeding import Feeding
from vllm_batchllm.jobs.journal import Journal
from vllm_batchllm.jobs.line_server import Ending, LineServer
from vllm_batchllm.jobs.manifest import check_manifest
from vllm_batchllm.jobs.records import Records
from vllm_batchllm.jobs.writer import JournalWriter
from vllm_batchllm.prefix.prefix_order import Ints


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """identity: what, beside the input, makes this the same job: model, options that change answers.

    retry_errors: compute lines again whose answer is an error. dedupe: compute exact duplicates once.
    """

    identity: Mapping[str, str]
    defaults: LineDefaults = NO_DEFAULTS
    max_line_bytes: int = MAX_LINE_BYTES
    retry_errors: bool = False
    dedupe: bool = True


class JobSession:
    """An open job. Made by `open`; `close` lets others have it.

    plan: of the lines that had no answer when it was opened. reader: reads them again. flow: what is with the engine, while `run` goes on.
    """

    def __init__(self, source: Input, journal: Journal, books: Books, plan: TextPlan) -> None:
        self.source, self.books, self.plan = source, books, plan
        self.flow: Flow | None = None
        self._journal = journal
        self.reader = LineReader(source)
        followers = Followers(plan.leader)
        self._records = Records(source, self.reader, plan.is_refused, followers)
        self.counts.new_bytes_left = plan.num_new_bytes

    @classmethod
    def open(
        cls,
        input_path: Path,
        journal_path: Path,
        settings: SessionSettings,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Read the input once, plan it, and find what its journal has already. Blocks for as long.

        Args:
            on_progress: gets lines and bytes read, from time to time.

        Raises:
            JournalLockedError: another process is at it.
            UsageError: input or journal cannot be used; or they belong to another job.
        """
        journal = Journal(journal_path)
        try:
            source = scan(input_path, settings.defaults, settings.max_line_bytes, on_progress)
            check_manifest(journal_path, source, settings.identity)
            is_repeated = repeated_ids(source)
            books = Books(source, is_repeated)
            books.load(journal, retry_errors=settings.retry_errors)
            is_refused = source.is_bad | is_repeated
            plan = make_plan(source, books.remaining(), is_refused, dedupe=settings.dedupe)
            return cls(source, journal, books, plan)
        except BaseException:
            journal.close()
            raise

    @property
    def counts(self) -> JobCounts:
        """How far it is; grows while `run` goes on."""
        return self.books.counts

    async def run(
        self,
        server: LineServer,
        window: Window,
        stop: asyncio.Event,
        *,
        grace_s: float = 30.0,
        only: Sequence[int] | None = None,
    ) -> tuple[Ending, list[int]]:
        """Feed what has no answer yet, and write what comes back.

        Args:
            stop: once set, nothing more is fed; what runs has ``grace_s`` to end, and is given up then.
            only: these lines alone.

        Returns:
            How it ended, and the lines that were with the engine then, oldest first.

        Raises:
            OSError: the journal cannot be written. What it holds stays good.
        """
        self.flow = Flow(window)
        feeding = Feeding(server, self.flow, self.reader, self.entries())
        lines, new_bytes = self.lines_left(only)
        ending = await feeding.run(lines, new_bytes, stop, grace_s)  # type: ignore[arg-type]
        return ending, list(feeding.in_flight)

    def entries(self) -> Entries:
        """Where what comes back is entered; its writer has to be run."""
        return Entries(self._records, JournalWriter(self._journal, self.books), self.counts)

    def give_up_on(self, index: int, answer: Answer) -> None:
        """Answer a line, and those that ask the same, without computing it."""
        records = self._records.answered(index, self.reader.line(index), answer)
        places = self._journal.append([record.packed for record in records])
        for record, place in zip(records, places, strict=True):
            self.books.enter(record.index, place, len(record.packed), record.error_code)

    def close(self) -> None:
        """Let input and journal go; what was written is on the disk."""
        self.reader.close()
        self._journal.close()

    def lines_left(self, only: Sequence[int] | None = None) -> tuple[Ints, Ints]:
        """Lines without an answer in the order of the plan, and prompt text that each does not share with the one before."""
        lines, new_bytes = self.plan.order, self.plan.new_bytes
        wanted = self.books.places[lines] < 0
        if only is not None:
            wanted &= np.isin(lines, np.asarray(only, dtype=np.int64))
        return lines[wanted], new_bytes[wanted]
