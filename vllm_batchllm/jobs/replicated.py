# SPDX-License-Identifier: Apache-2.0
"""A job on many engines: its lines as a batch for the driver of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.line_server import Ending
from vllm_batchllm.jobs.line_worker import LineAt, LineItself
from vllm_batchllm.jobs.runner import KILLED, EngineKeepsDyingError, RunLimits
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.log import get_logger
from vllm_batchllm.plan.line_costs import costs_of, work_of
from vllm_batchllm.replicas.assignment import Assignment
from vllm_batchllm.replicas.cut import Costs, Floats
from vllm_batchllm.replicas.driver import Driver
from vllm_batchllm.replicas.errors import NoReplicaLeftError
from vllm_batchllm.replicas.replica import Capacity, Given, Replica
from vllm_batchllm.replicas.slot import DriveLimits

logger = get_logger(__name__)


class ReplicatedRunner:
    """Runs a session to its end on replicas. Like `JobRunner`, which does on one engine.

    Attributes:
        num_restarts: of engines so far.
    """

    def __init__(self, session: JobSession, replicas: Sequence[Replica], limits: RunLimits) -> None:
        self._session, self._limits = session, limits
        self._work = _Lines(session)
        costs = self._work.costs()
        assignment = Assignment(costs, [replica.name for replica in replicas])
        drive = DriveLimits(limits.start_s, limits.stall_s, limits.grace_s, limits.max_restarts)
        self._driver = Driver(replicas, assignment, self._work, drive, costs.work)

    @property
    def num_restarts(self) -> int:
        """Of engines so far."""
        return self._driver.num_restarts

    def figures(self) -> dict[str, float]:
        """Totals over all engines."""
        return self._driver.figures()

    async def run(self, stop: asyncio.Event) -> Ending:
        """DONE, or STOPPED once ``stop`` is set.

        Raises:
            EngineKeepsDyingError: no replica is left.
            OSError: the journal cannot be written.
        """
        writing = asyncio.create_task(self._work.entries.writer.run())
        driving = asyncio.create_task(self._driver.run(stop))
        try:
            await asyncio.wait([writing, driving], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                driving.cancel()
                await asyncio.wait([driving])
            else:
                is_done = driving.result()
        except NoReplicaLeftError as error:
            raise EngineKeepsDyingError(str(error)) from error
        finally:
            driving.cancel()
            self._work.entries.writer.close()
            await asyncio.wait([writing, driving])
        writing.result()
        return Ending.DONE if is_done else Ending.STOPPED


class _Lines:
    """A session's lines as `Work`: an item is a place in the order of the lines that had no answer at first."""

    def __init__(self, session: JobSession) -> None:
        self._session = session
        self._lines, self._new_bytes = session.lines_left()
        self.entries = session.entries()

    def costs(self) -> Costs:
        """In tokens, as far as they can be told from text."""
        return costs_of(self._session.source.text_bytes[self._lines], self._new_bytes)

    def work_now(self) -> Floats | None:
        """By the mean length of outputs so far."""
        counts = self._session.counts
        answered = counts.done - counts.resumed
        return work_of(self._new_bytes, counts.output_tokens / answered) if answered else None

    async def load(self, items: Sequence[int], capacity: Capacity) -> list[Given]:
        """Places of lines for whoever sees the file, their bytes for others; those that are no requests are answered."""
        return await self._refuse(await asyncio.to_thread(self._read, items, capacity))

    def _read(self, items: Sequence[int], capacity: Capacity) -> list[tuple[int, Any, Any]]:
        source, reader = self._session.source, self._session.reader
        found: list[tuple[int, Any, Any]] = []
        for item in items:
            index = int(self._lines[item])
            number = int(source.numbers[index])
            try:
                line: Any = reader.line(index)
            except BadLineError as error:
                found.append((item, error, None))
                continue
            if capacity.sees_input:
                where: Any = LineAt(number, int(source.offsets[index]), int(source.lengths[index]))
            else:
                where = LineItself(number, reader.raw(index) or b"")
            found.append((item, line, where))
        return found

    async def _refuse(self, read: list[tuple[int, Any, Any]]) -> list[Given]:
        given: list[Given] = []
        for item, line, where in read:
            index, new_bytes = int(self._lines[item]), int(self._new_bytes[item])
            if not await self.entries.refused((index, line), new_bytes):
                given.append((item, where))
        return given

    async def answered(self, item: int, answer: Answer) -> None:
        """Into the journal."""
        index = int(self._lines[item])
        line = self._session.reader.line(index)
        await self.entries.answered(index, line, answer, int(self._new_bytes[item]))

    async def give_up(self, item: int) -> None:
        """Answer it with an error."""
        number = int(self._session.source.numbers[self._lines[item]])
        logger.error("line %d has killed engines; it is answered with an error", number)
        message = f"line {number} has killed engines; it was not tried again"
        await self.answered(item, Answer.of_error(KILLED, message, 500))
