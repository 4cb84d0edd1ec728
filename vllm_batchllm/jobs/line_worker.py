# SPDX-License-Identifier: Apache-2.0
"""Lines answered where a replica is: one of vLLM's engines with its handlers, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.line import LineDefaults, parse_line
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.scan import Input, file_fingerprint
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.figures import engine_figures
from vllm_batchllm.jobs.line_server import EngineGoneError
from vllm_batchllm.replicas.host import Outbox, WorkerState
from vllm_batchllm.replicas.replica import Capacity, Given


@dataclass(frozen=True, slots=True)
class InputFile:
    """The input of a job, for machines that may see the same file. fingerprint: of all its bytes."""

    path: str
    fingerprint: str
    defaults: LineDefaults
    max_line_bytes: int

    @classmethod
    def of(cls, source: Input) -> InputFile:
        """Of an input that was read."""
        path = str(source.path.resolve())
        return cls(path, source.fingerprint, source.defaults, source.max_line_bytes)


@dataclass(frozen=True, slots=True)
class LineAt:
    """A line by its place in the input: its number, and the bytes that it takes there."""

    number: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class LineItself:
    """A line by value."""

    number: int
    raw: bytes

    @property
    def num_bytes(self) -> int:
        """Of the line."""
        return len(self.raw)


class LineWorker:
    """A `Worker` whose items are `LineAt` or `LineItself`, and whose answers are `Answer`.

    Args:
        args: vLLM's options of engine and handlers.
        source: the input, which this machine may see.
    """

    def __init__(self, args: Namespace, source: InputFile, outbox: Outbox) -> None:
        self._args, self._source, self._outbox = args, source, outbox
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._capacity = Capacity(1)
        self._server: Any = None
        self._file: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False

    def start(self) -> Capacity:
        """Start the engine. Raises whatever keeps it from starting."""
        self._file = self._open()
        threading.Thread(target=self._run, name="engine", daemon=True).start()
        self._ready.wait()
        if self._failure is not None:
            raise RuntimeError(f"the engine could not be started: {self._failure}")
        return self._capacity

    def give(self, given: Sequence[Given]) -> None:
        """Begin to answer lines."""
        self._loop.call_soon_threadsafe(self._begin, list(given))

    def state(self) -> WorkerState:
        """By vLLM's own metrics."""
        found = engine_figures()
        names = ("prompt_tokens", "output_tokens", "asked_tokens", "cached_tokens", "preemptions")
        figures = {name: float(getattr(found, name)) for name in names}
        return WorkerState(found.num_running, found.life, figures)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """There is nothing else to ask. Raises ValueError."""
        raise ValueError(f"a replica of a job has no {method}")

    def _open(self) -> int | None:
        """The input, if this machine sees the very same: a line of another one would be answered as if it were ours."""
        try:
            with open(self._source.path, "rb") as stream:
                if file_fingerprint(stream) != self._source.fingerprint:
                    return None
                return os.dup(stream.fileno())
        except OSError:
            return None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
            self._outbox.fail("the engine has died")
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            self._failure = error
            self._outbox.fail(str(error) or type(error).__name__)
        finally:
            self._ready.set()

    async def _main(self) -> None:
        from vllm_batchllm.jobs.engine import started_engine

        async with started_engine(self._args) as engine:
            self._server = engine.server
            self._capacity = Capacity(engine.max_num_seqs, self._file is not None)
            self._ready.set()
            await engine.server.gone.wait()
            self._is_over = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, given: list[Given]) -> None:
        for item, where in given:
            task = self._loop.create_task(self._serve(item, where))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, item: int, where: LineAt | LineItself) -> None:
        try:
            line = self._line(where)
            answer = await self._server.serve(line)
            if not self._is_over:  # handlers answer a cancellation with an error; it is none
                self._outbox.put(item, answer)
        except EngineGoneError as error:
            self._outbox.fail(str(error))
        except BadLineError as error:  # the driver has read it otherwise: the file has changed
            self._outbox.put(item, Answer.of_error("invalid_line", str(error)))
        except Exception as error:  # noqa: BLE001 - the line would have no answer, and nobody would know
            self._outbox.fail(f"{type(error).__name__}: {error}")

    def _line(self, where: LineAt | LineItself) -> Any:
        source = self._source
        if isinstance(where, LineItself):
            raw = where.raw
        else:
            if self._file is None:
                raise UsageError(f"{source.path} is not seen here")
            raw = os.pread(self._file, where.length, where.offset)
        return parse_line(where.number, raw, source.defaults, source.max_line_bytes)
