# SPDX-License-Identifier: Apache-2.0
"""The loop that runs batches: in one process at a time, a few at once, the oldest first."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from vllm_batchllm.batch_api import schema
from vllm_batchllm.batch_api.database import DatabaseAway
from vllm_batchllm.batch_api.lease import Lease
from vllm_batchllm.batch_api.metrics import BatchMetrics
from vllm_batchllm.batch_api.records import (
    Row,
    known_files,
    move,
    next_batches,
    note,
    of_ids,
    queue,
)
from vllm_batchllm.batch_api.running import BatchRun, Tools
from vllm_batchllm.batch_api.schema import BatchError
from vllm_batchllm.jobs.journal import JournalLockedError
from vllm_batchllm.jobs.line_server import EngineGoneError
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.log import get_logger

logger = get_logger(__name__)

POLL_S = 1.0
MAX_PAUSE_S = 60.0
END_S = 5.0
"""What an end may take beyond the grace of lines, seconds."""
MAX_TRIES = 5
"""Failures of one batch, for reasons that nobody knows, after which it is given up."""
SWEEP_EVERY_S = 3600.0
FOR_LATER = (DatabaseAway, OSError, JournalLockedError, EngineGoneError)
"""What says nothing about the batch: no space, no database, no engine, another process still at it."""


@dataclass(slots=True)
class _Trouble:
    """Failures of a batch in a row, and until when it is left alone (seconds of the loop's clock)."""

    num_failures: int = 0
    until: float = 0.0


class Runner:
    """Runs the batches of a database while this process holds its lease."""

    def __init__(
        self,
        tools: Tools,
        lease: Lease,
        *,
        concurrency: int,
        metrics: BatchMetrics,
        poll_s: float = POLL_S,
    ) -> None:
        self._tools, self._lease, self._metrics = tools, lease, metrics
        self._concurrency, self._poll_s = concurrency, poll_s
        self._runs: dict[str, tuple[BatchRun, asyncio.Task[None]]] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._given_up: list[str] = []
        self._told: dict[str, tuple[int, int]] = {}
        self._stopping, self._wake = asyncio.Event(), asyncio.Event()
        self._is_away = False
        self._swept_at = float("-inf")

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` has been called."""
        return self._stopping.is_set()

    async def run(self) -> None:
        """Go on until `stop`; whatever happens to the database, the disk or a batch."""
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                await self._turn_safely()
                # Python 3.11's wait_for may swallow a cancellation that comes with what it waits for.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._wake.wait()
        finally:
            await self._end()

    def stop(self) -> None:
        """Feed nothing more; what runs has its grace. `run` ends then."""
        self._stopping.set()
        self._wake.set()
        self._halt_all()

    async def _turn_safely(self) -> None:
        try:
            await self._turn()
        except DatabaseAway as error:
            if not self._is_away:
                logger.warning("%s; batches that run go on meanwhile", error)
            self._is_away = True
            if not self._lease.is_held:
                self._halt_all()
        except Exception:
            logger.exception("A turn of the batch runner failed; it goes on")
        else:
            if self._is_away:
                logger.info("The database of batches is back")
            self._is_away = False

    async def _turn(self) -> None:
        if not await self._lease.take():
            if self._runs:
                logger.warning("Another process runs the batches now")
            self._halt_all()
            self._metrics.clear()
            return
        self._collect()
        await self._give_up()
        running, waiting, (by_state, oldest) = await self._tools.database.ado(self._look)
        for row in running:
            if row["id"] in self._runs:
                self._runs[row["id"]][0].observe(row)
        for row in waiting[: self._concurrency - len(self._runs)]:
            self._start(row)
        await self._tell_progress()
        self._metrics.show(by_state, oldest, self._tools.clock(), self._sessions())
        await self._sweep()

    def _look(
        self, connection: Connection
    ) -> tuple[list[Row], list[Row], tuple[dict[str, int], int | None]]:
        names = list(self._runs)
        now = time.monotonic()
        resting = [name for name, trouble in self._troubles.items() if trouble.until > now]
        waiting = next_batches(connection, self._concurrency, [*names, *resting])
        return of_ids(connection, names), waiting, queue(connection)

    def _start(self, row: Row) -> None:
        run = BatchRun(row, self._tools)
        task = asyncio.create_task(run.run(), name=run.id)
        task.add_done_callback(lambda _: self._wake.set())
        self._runs[run.id] = run, task
        logger.info("Batch %s: %s", run.id, row["status"])

    def _collect(self) -> None:
        """Take note of what was answered, and of the runs that have ended."""
        for name, (run, task) in list(self._runs.items()):
            if run.tally is not None:
                self._metrics.count(run.tally.untold())
            if not task.done():
                continue
            del self._runs[name]
            error = None if task.cancelled() else task.exception()
            if error is None:
                self._troubles.pop(name, None)
            else:
                self._note_trouble(name, error)

    def _note_trouble(self, name: str, error: BaseException) -> None:
        """Leave a batch alone for a while; give it up where it fails for reasons of its own."""
        trouble = self._troubles.setdefault(name, _Trouble())
        trouble.num_failures += 1
        pause_s = min(2.0 ** (trouble.num_failures - 1), MAX_PAUSE_S)
        trouble.until = time.monotonic() + pause_s
        if isinstance(error, FOR_LATER):
            logger.warning("Batch %s goes on in %.0f s: %s", name, pause_s, error)
            return
        logger.error("Batch %s failed, try %d", name, trouble.num_failures, exc_info=error)
        if trouble.num_failures >= MAX_TRIES:
            self._given_up.append(name)

    async def _give_up(self) -> None:
        """Let batches end that fail again and again; what they have answered is kept."""
        reason = "the batch failed again and again; the server's log says how"
        errors = schema.errors_json([BatchError("internal_error", reason)])
        while self._given_up:
            name, now = self._given_up[-1], self._tools.clock()

            def end(connection: Connection, name: str = name, now: float = now) -> bool:
                held = self._lease.holder
                return move(connection, name, "failed", now, holder=held, errors=errors) or move(
                    connection,
                    name,
                    "finalizing",
                    now,
                    holder=held,
                    errors=errors,
                    outcome="failed",
                )

            await self._tools.database.ado(end)
            self._given_up.pop()

    def _sessions(self) -> dict[str, JobSession]:
        runs = [run for run, _ in self._runs.values()]
        return {run.id: run.session for run in runs if run.session is not None}

    async def _tell_progress(self) -> None:
        """Write down how many lines are answered, for whoever asks; the end counts them again."""
        told: dict[str, tuple[int, int]] = {}
        for name, session in self._sessions().items():
            counts = session.counts.completed, session.counts.failed
            if self._told.get(name) != counts:
                told[name] = counts

        def write(connection: Connection) -> None:
            for name, (completed, failed) in told.items():
                note(connection, name, completed=completed, failed=failed)

        if told:
            await self._tools.database.ado(write)
        self._told = {name: self._told[name] for name in self._told if name in self._runs} | told

    async def _sweep(self) -> None:
        """Remove contents that an end of the server has left without an owner."""
        if time.monotonic() - self._swept_at < SWEEP_EVERY_S:
            return
        self._swept_at = time.monotonic()
        contents = self._tools.contents
        names = await asyncio.to_thread(lambda: list(contents.left_over(time.time())))
        for start in range(0, len(names), 500):
            some = names[start : start + 500]
            known = await self._tools.database.ado(partial(known_files, names=some))
            for name in set(some) - known:
                contents.remove(name)

    def _halt_all(self) -> None:
        for run, _ in self._runs.values():
            run.halt()

    async def _end(self) -> None:
        """Wait for what runs, no longer than its grace, and let the lease go."""
        self._halt_all()
        tasks = [task for _, task in self._runs.values()]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=self._tools.grace_s + END_S)
            for task in left:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(DatabaseAway):  # it expires
            await self._lease.give_back()
