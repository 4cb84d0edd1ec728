# SPDX-License-Identifier: Apache-2.0
"""One run of `vllm-batchllm run`: input opened, session run on an engine, output made, all of it interruptible."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.kind import check_kind
from vllm_batchllm.input.source import open_source
from vllm_batchllm.jobs.figures import engine_figures
from vllm_batchllm.jobs.finish import FinalOrder, check_output, write_final
from vllm_batchllm.jobs.journal import Journal
from vllm_batchllm.jobs.line_server import Ending
from vllm_batchllm.jobs.line_worker import InputFile, LineWorker
from vllm_batchllm.jobs.options import JobOptions
from vllm_batchllm.jobs.progress import Figures, JobState, Progress, tell_reading
from vllm_batchllm.jobs.replicated import ReplicatedRunner
from vllm_batchllm.jobs.runner import Engine, JobRunner
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.plugin.job_process import begin_job
from vllm_batchllm.replicas.start import ReplicaOptions, replicas_of

_SHOW_EVERY_S = 1.0


class Job:
    """A job between its command line and its exit code.

    progress: what it shows and writes while it goes on.
    """

    def __init__(self, options: JobOptions) -> None:
        self._options = options
        paths = options.paths
        output = "-" if paths.output is None else str(paths.output)
        self._figures: Callable[[], Any] = engine_figures
        state = JobState(options.input_name, output)
        self.progress = Progress(state, paths.status, lambda: self._figures())
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._may_stop = False
        self._scratch: Path | None = None

    def open(self) -> JobSession:
        """Read the input, plan it, and find what has been answered.

        Raises:
            UsageError: input, output or an earlier run do not fit.
        """
        options, paths = self._options, self._options.paths
        if paths.output is not None and paths.is_final:
            check_output(paths.output, self._parquet_input())
        if options.restart and not options.dry_run:
            _forget(options)
        source = open_source(options.input_name, paths.spool, options.columns)
        check_kind(source, options.input_name)
        journal = paths.journal
        if options.dry_run and (options.restart or not journal.exists()):
            self._scratch = Path(tempfile.mkdtemp(prefix="vllm-batchllm-"))
            journal = self._scratch / "journal.jsonl"
        session = JobSession.open(source, journal, options.settings, tell_reading)
        is_table = paths.output is not None and paths.output.suffix.lower() == ".parquet"
        if is_table and len(session.source) and not session.source.is_plain:
            session.close()
            raise UsageError(
                f"{paths.output}: only answers to plain lines fit into the columns of a Parquet file, "
                f"and {options.input_name} holds lines of the Batch API; name a .jsonl"
            )
        return session

    def run(self, session: JobSession) -> Ending:
        """Answer what has no answer yet.

        Raises:
            EngineKeepsDyingError, OSError: see `JobRunner.run`.
            KeyboardInterrupt: it was stopped before an engine ran, or a second time.
        """
        if not len(session.books.remaining()):
            self.progress.show(session, 0)
            return Ending.DONE
        begin_job()
        options = self._options.replicas
        if options is None:
            runner = JobRunner(session, self._started, _life, self._options.limits)
            with _signals(self._on_signal):
                return asyncio.run(self._run(session, runner))
        return self._run_replicated(session, options)

    def _run_replicated(self, session: JobSession, options: ReplicaOptions) -> Ending:
        seen = InputFile.of(session.source)
        make_worker = partial(LineWorker, self._options.engine, seen)
        what = f"--replicas {options.num_replicas}"
        with replicas_of(options, make_worker, what) as replicas, _signals(self._on_signal):
            runner = ReplicatedRunner(session, replicas, self._options.limits)
            self._figures = lambda: Figures(**runner.figures())
            self._may_stop = True
            self.progress.say("running", f"{options.num_replicas} replicas")
            return asyncio.run(self._run(session, runner))

    def finish(self, session: JobSession) -> None:
        """Make OUTPUT from the journal, where that is not OUTPUT itself.

        Raises:
            UsageError: it cannot be written; the journal stays as it is.
        """
        paths = self._options.paths
        if paths.output is None:
            with paths.journal.open("rb") as answers:
                shutil.copyfileobj(answers, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        elif paths.is_final:
            books = session.books
            order = FinalOrder(books.places, books.lengths)
            write_final(paths.journal, paths.output, order, self._parquet_input())

    def clean(self) -> None:
        """Remove what a job that is done leaves behind beside OUTPUT and its journal."""
        self._options.paths.remove_scratch()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    async def _run(self, session: JobSession, runner: JobRunner | ReplicatedRunner) -> Ending:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        showing = asyncio.create_task(self._show(session, runner))
        try:
            return await runner.run(self._stop)
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing
            self.progress.show(session, runner.num_restarts)

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[Engine]:
        from vllm_batchllm.jobs.engine import started_engine

        self.progress.say("starting")
        async with started_engine(self._options.engine) as engine:
            self._may_stop = True
            self.progress.say("running")
            try:
                yield engine
            finally:
                self._may_stop = False

    async def _show(self, session: JobSession, runner: JobRunner | ReplicatedRunner) -> None:
        while True:
            await asyncio.sleep(_SHOW_EVERY_S)
            self.progress.show(session, runner.num_restarts)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first time let what runs end; the second time, or before anything runs, leave at once."""
        stop, loop = self._stop, self._loop
        if stop is None or loop is None or stop.is_set() or not self._may_stop:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        self.progress.state.state = "stopping"
        self.progress.state.message = f"{name}: letting what runs end (again: leave at once)"
        print(f"\n{self.progress.state.message}", file=sys.stderr)
        loop.call_soon_threadsafe(stop.set)

    def _parquet_input(self) -> Path | None:
        path = Path(self._options.input_name)
        return path if path.suffix.lower() == ".parquet" else None


def _forget(options: JobOptions) -> None:
    """Remove what an earlier run has left, unless it still runs."""
    Journal(options.paths.journal).close()
    options.paths.remove_old()


def _life() -> int:
    return engine_figures().life


@contextmanager
def _signals(handler: object) -> Iterator[None]:
    """SIGINT and SIGTERM go to ``handler`` inside the block."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
