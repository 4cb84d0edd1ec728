# SPDX-License-Identifier: Apache-2.0
"""One batch, from where it is to where it ends. It may be interrupted anywhere: the next one goes on from the same rows.

The journal says which lines are answered, the row says in which state the batch is. Each step ends with
one change of the row, made only if the row is still in the state that the step began in.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from vllm_batchllm.batch_api import schema, states
from vllm_batchllm.batch_api.contents import Contents
from vllm_batchllm.batch_api.database import Database
from vllm_batchllm.batch_api.records import Row, add, find, move, note
from vllm_batchllm.batch_api.results import Results, write_results
from vllm_batchllm.batch_api.schema import BatchError
from vllm_batchllm.batch_api.tables import BATCHES, FILES
from vllm_batchllm.batch_api.validation import problems
from vllm_batchllm.batch_api.work import ExpiredServer, Work
from vllm_batchllm.errors import UsageError
from vllm_batchllm.jobs.books import JobCounts
from vllm_batchllm.jobs.journal import JournalLockedError
from vllm_batchllm.jobs.line_server import Ending, EngineGoneError, LineServer
from vllm_batchllm.jobs.session import JobSession, SessionSettings

GRACE_S = 5.0
"""How long lines that run may end once a batch is stopped, seconds."""


def nothing(place: str) -> None:
    """What happens at a failpoint unless a test says otherwise."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every run of a batch uses. holder: of the lease. clock: seconds since 1970.

    failpoint: called at every place at which a process may end.
    """

    database: Database
    contents: Contents
    work: Work
    holder: str
    max_lines: int
    clock: Callable[[], float] = time.time
    failpoint: Callable[[str], None] = nothing
    grace_s: float = GRACE_S


@dataclass(slots=True)
class Tally:
    """Lines that a run has answered, and how many of them have been told already."""

    counts: JobCounts
    told_completed: int
    told_failed: int

    def untold(self) -> dict[str, int]:
        """Lines since it was asked last, by outcome."""
        completed, failed = self.counts.completed, self.counts.failed
        new = {"completed": completed - self.told_completed, "failed": failed - self.told_failed}
        self.told_completed, self.told_failed = completed, failed
        return new


class BatchRun:
    """Drives one batch; `run` once.

    session: its lines, while they are open. tally: of its lines, once they have been opened.
    is_halted: no further step is to be taken.
    """

    def __init__(self, row: Row, tools: Tools) -> None:
        self.id: str = row["id"]
        self.session: JobSession | None = None
        self.tally: Tally | None = None
        self.is_halted = False
        self._tools = tools
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Take steps until the batch is finished, or this is halted.

        Raises:
            DatabaseAway, OSError, JournalLockedError, EngineGoneError: to be tried again later.
        """
        steps = {
            "validating": self._validate,
            "in_progress": self._answer,
            "finalizing": self._finalize,
            "cancelling": self._finalize,
        }
        try:
            while not self.is_halted:
                row = await self._row()
                if row is None or row["status"] not in steps:
                    break
                await steps[row["status"]](row)
                self._tools.failpoint(f"after {row['status']}")
        finally:
            await self._close()

    def observe(self, row: Row) -> None:
        """Stop feeding where the row says so: it is cancelled, or its time is over."""
        is_over = self._tools.clock() >= row["expires_at"] and row["outcome"] is None
        if row["status"] != "in_progress" or is_over:
            self._stop.set()

    def halt(self) -> None:
        """Stop feeding, and take no further step."""
        self.is_halted = True
        self._stop.set()

    async def _row(self) -> Row | None:
        return await self._tools.database.ado(lambda c: find(c, BATCHES, self.id))

    async def _open(self, row: Row) -> list[BatchError]:
        """Have the session open; what is wrong with the batch as a whole, if something is."""
        if self.session is not None:
            return []
        contents = self._tools.contents
        paths = contents.file(row["input_file_id"]), contents.journal(self.id)
        settings = SessionSettings(identity={"batch": self.id})
        try:
            self.session = await asyncio.to_thread(JobSession.open, *paths, settings)
        except JournalLockedError:
            raise
        except UsageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno != errno.ENOENT:
                raise error.__cause__ from None  # of the disk, not of the file
            return [BatchError("invalid_file", _without_paths(str(error), contents))]
        counts = self.session.counts
        self.tally = Tally(counts, counts.completed, counts.failed)
        limits = row["endpoint"], self._tools.work.models(), self._tools.max_lines
        return await asyncio.to_thread(problems, self.session.source, *limits)

    async def _validate(self, row: Row) -> None:
        errors = await self._open(row)
        self._tools.failpoint("validated")
        if errors:
            await self._move("failed", errors=schema.errors_json(errors))
        elif self.session is not None:
            await self._move("in_progress", total=self.session.counts.total)

    async def _answer(self, row: Row) -> None:
        errors = await self._open(row)
        if errors or self.session is None:  # after a restart: another model, a file that is gone
            await self._end_answering("failed", errors=schema.errors_json(errors))
            return
        outcome = row["outcome"]
        is_over = self._tools.clock() >= row["expires_at"]
        if is_over and outcome is None and self.session.counts.done < self.session.counts.total:
            # Written down first: a restart between the last error and the end ends it alike.
            outcome = "expired"
            await self._note(outcome=outcome)
        self._stop = asyncio.Event()
        if self.is_halted:
            return
        server: LineServer = ExpiredServer() if outcome == "expired" else self._tools.work.server
        ending, _ = await self.session.run(
            server, self._tools.work.window, self._stop, grace_s=self._tools.grace_s
        )
        self._tools.failpoint("answered")
        if ending is Ending.ENGINE_GONE:
            raise EngineGoneError("the engine is gone; the batch goes on with the next")
        if ending is Ending.DONE:
            await self._end_answering(outcome or "completed")

    async def _end_answering(self, outcome: str, **values: Any) -> None:
        self._tools.failpoint("before finalizing")
        await self._move("finalizing", outcome=outcome, **values)

    async def _finalize(self, row: Row) -> None:
        await self._close()
        answers, failures = row["answers_id"], row["failures_id"]
        results = await asyncio.to_thread(
            write_results, self._tools.contents, self.id, answers, failures
        )
        self._tools.failpoint("results written")
        final = "cancelled" if row["status"] == "cancelling" else row["outcome"] or "completed"
        made = await self._tools.database.ado(lambda c: self._finish(c, row, results, final))
        self._tools.failpoint("finished")
        if made:
            await asyncio.to_thread(self._tools.contents.forget_journal, self.id)
        else:
            self.is_halted = True  # somebody else runs it

    def _finish(self, connection: Connection, row: Row, results: Results, final: str) -> bool:
        now = self._tools.clock()
        found = {
            "output": (row["answers_id"], results.num_answers, results.answer_bytes),
            "error": (row["failures_id"], results.num_failures, results.failure_bytes),
        }
        values: Row = {"completed": results.num_answers, "failed": results.num_failures}
        for kind, (name, number, _) in found.items():
            values[f"{kind}_file_id"] = name if number else None
        if not move(connection, self.id, final, now, holder=self._tools.holder, **values):
            return False
        for kind, (name, number, num_bytes) in found.items():
            if number:
                add(connection, FILES, _file_row(row, kind, name, num_bytes, now))
        return True

    async def _move(self, to: str, **values: Any) -> None:
        """Change the state, unless it has been cancelled meanwhile; halted where the lease is lost."""
        tools = self._tools

        def change(connection: Connection) -> bool:
            now = tools.clock()
            return move(connection, self.id, to, now, holder=tools.holder, **values)

        if not await tools.database.ado(change):
            row = await self._row()
            self.is_halted |= row is not None and row["status"] in states.before(to)
        tools.failpoint(f"moved to {to}")

    async def _note(self, **values: Any) -> None:
        await self._tools.database.ado(lambda c: note(c, self.id, **values))

    async def _close(self) -> None:
        if self.session is not None:
            session, self.session = self.session, None
            await asyncio.to_thread(session.close)


def _file_row(row: Row, kind: str, name: str, num_bytes: int, now: float) -> Row:
    return {
        "id": name,
        "owner": row["owner"],
        "filename": f"{row['id']}_{kind}.jsonl",
        "purpose": "batch_output",
        "bytes": num_bytes,
        "created_at": int(now),
    }


def _without_paths(message: str, contents: Contents) -> str:
    """A message for a client, who is not told where the server keeps things."""
    return message.replace(str(contents.directory), "")[:500]
