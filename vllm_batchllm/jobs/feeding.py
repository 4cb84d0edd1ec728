# SPDX-License-Identifier: Apache-2.0
"""Lines on their way through a server: in order, a window at a time, until they are done, it is stopped, or the engine dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from vllm_batchllm.input.line import JobLine
from vllm_batchllm.input.scan import LineReader
from vllm_batchllm.jobs.entries import Entries
from vllm_batchllm.jobs.feed import Flow, read_ahead
from vllm_batchllm.jobs.line_server import Ending, EngineGoneError, LineServer


class Feeding:
    """One pass over lines that have no answer yet; use `run` once.

    in_flight: indices of the lines that are with the server, in the order in which they went there.
    """

    def __init__(
        self,
        server: LineServer,
        flow: Flow,
        reader: LineReader,
        entries: Entries,
    ) -> None:
        self._server, self._flow = server, flow
        self._reader, self._entries = reader, entries
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._is_gone = self._is_over = False
        self.in_flight: dict[int, None] = {}

    async def run(
        self, lines: Sequence[int], new_bytes: Sequence[int], stop: asyncio.Event, grace_s: float
    ) -> Ending:
        """Feed ``lines``; see `JobSession.run`."""
        writer = self._entries.writer
        writing = asyncio.create_task(writer.run())
        writing.add_done_callback(self._note_failure)
        watching = [asyncio.create_task(self._watch(stop)), asyncio.create_task(self._watch_gone())]
        try:
            await self._feed(lines, new_bytes)
            await self._drain(stop, grace_s)
        finally:
            for task in watching:
                task.cancel()
            await self._cancel_all()
            writer.close()
            await asyncio.wait([writing])
        if self._failure is not None:
            raise self._failure
        if self._is_gone:
            return Ending.ENGINE_GONE
        return Ending.STOPPED if self._flow.is_halted else Ending.DONE

    async def _feed(self, lines: Sequence[int], new_bytes: Sequence[int]) -> None:
        async with aclosing(read_ahead(self._reader, lines)) as reading:
            place = 0
            async for index, line in reading:
                added = int(new_bytes[place])
                place += 1
                if await self._entries.refused((index, line), added):
                    continue
                if await self._flow.enter(added):
                    assert isinstance(line, JobLine)
                    self._begin(index, line, added)
                else:
                    return

    def _begin(self, index: int, line: JobLine, added: int) -> None:
        self.in_flight[index] = None
        task = asyncio.create_task(self._serve(index, line, added))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._note_failure)

    async def _serve(self, index: int, line: JobLine, added: int) -> None:
        prompt_tokens = 0
        try:
            answer = await self._server.serve(line)
            if self._is_over:  # handlers answer a cancellation with an error; it is none
                return
            prompt_tokens = await self._entries.answered(index, line, answer, added)
            del self.in_flight[index]
        except EngineGoneError:
            self._is_gone = True
            self._flow.halt()
        finally:
            self._flow.leave(added, self._reader.text_bytes(index), prompt_tokens)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._flow.halt()

    async def _watch_gone(self) -> None:
        await self._server.gone.wait()
        self._is_gone = True
        self._flow.halt()

    async def _drain(self, stop: asyncio.Event, grace_s: float) -> None:
        """Wait for what runs: as long as it takes, once stopped for the grace, not at all after a failure."""
        deadline: float | None = None
        clock = asyncio.get_running_loop().time
        while self._tasks and not self._is_gone and self._failure is None:
            if deadline is None and stop.is_set():
                deadline = clock() + grace_s
            if deadline is not None and clock() >= deadline:
                return
            left = 0.5 if deadline is None else min(0.5, max(deadline - clock(), 0.0))
            await asyncio.wait(self._tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def _cancel_all(self) -> None:
        self._is_over = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        """What ends a task that nobody waits for ends the feeding."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failure = self._failure or error
            self._flow.halt()
