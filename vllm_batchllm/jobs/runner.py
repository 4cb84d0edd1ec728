# SPDX-License-Identifier: Apache-2.0
"""A job on one engine: started, fed, watched, and started again when it dies or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass
from typing import Protocol

from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.line_server import Ending, LineServer
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.log import get_logger
from vllm_batchllm.replicas.suspects import Suspects

logger = get_logger(__name__)

KILLED = "engine_died"
_MOST_FRUITLESS = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LOOK_EVERY_S = 1.0


class Engine(Protocol):
    """What the runner needs of a started engine."""

    @property
    def server(self) -> LineServer: ...

    @property
    def window(self) -> Window: ...


@dataclass(frozen=True, slots=True)
class RunLimits:
    """stall_s: without a step for so long while lines are with it, an engine hangs. grace_s: for what runs, once stopped.

    max_restarts: of the engine, in one run of the command. start_s: each of several engines has so long to start.
    """

    stall_s: float = 300.0
    grace_s: float = 30.0
    max_restarts: int = 20
    start_s: float = 1800.0


class EngineKeepsDyingError(RuntimeError):
    """The engine could not be started, or was started again too often. What was answered is in the journal."""


class JobRunner:
    """Runs a session to its end.

    Args:
        start: starts an engine, as a context that ends it.
        life: a value that changes with every step of the engine.

    Attributes:
        num_restarts: of the engine so far.
    """

    def __init__(
        self,
        session: JobSession,
        start: Callable[[], AbstractAsyncContextManager[Engine]],
        life: Callable[[], object],
        limits: RunLimits,
    ) -> None:
        self._session, self._start = session, start
        self._life, self._limits = life, limits
        self._suspects = Suspects()
        self._fruitless = 0
        self.num_restarts = 0

    async def run(self, stop: asyncio.Event) -> Ending:
        """DONE, or STOPPED once ``stop`` is set.

        Raises:
            EngineKeepsDyingError: see there.
            OSError: the journal cannot be written.
        """
        while not stop.is_set():
            done_before = self._session.counts.done
            ending = await self._one_engine(stop)
            if ending is not Ending.ENGINE_GONE:
                return ending
            self._fruitless = 0 if self._session.counts.done > done_before else self._fruitless + 1
            await self._before_restart(stop)
        return Ending.STOPPED

    async def _one_engine(self, stop: asyncio.Event) -> Ending:
        """The life of one engine, to the end of the job or its own."""
        async with AsyncExitStack() as stack:
            try:
                engine = await stack.enter_async_context(self._start())
            except Exception as error:
                if self.num_restarts == 0:
                    raise EngineKeepsDyingError(f"no engine could be started: {error}") from error
                logger.warning("the engine could not be started again", exc_info=True)
                return Ending.ENGINE_GONE
            ending, in_flight = await self._feed(engine, stop)
        if ending is Ending.ENGINE_GONE:
            self._accuse(in_flight)
        return ending

    async def _feed(self, engine: Engine, stop: asyncio.Event) -> tuple[Ending, list[int]]:
        """Suspects first, a few at a time; then everything that is left."""
        session, limits = self._session, self._limits
        async with self._watched(engine.server):
            while group := self._suspects.next_group():
                window = engine.window.at_most(len(group))
                found = await session.run(
                    engine.server, window, stop, grace_s=limits.grace_s, only=group
                )
                if found[0] is not Ending.DONE:
                    return found
                self._suspects.cleared(group)
            return await session.run(engine.server, engine.window, stop, grace_s=limits.grace_s)

    def _accuse(self, in_flight: list[int]) -> None:
        guilty = self._suspects.died(in_flight) if in_flight else None
        if guilty is None:
            logger.warning("the engine is gone; %d lines were with it", len(in_flight))
            return
        number = int(self._session.source.numbers[guilty])
        logger.error("line %d has killed the engine twice; it is answered with an error", number)
        message = f"line {number} has killed the engine twice; it was not tried again"
        self._session.give_up_on(guilty, Answer.of_error(KILLED, message, 500))

    async def _before_restart(self, stop: asyncio.Event) -> None:
        if self.num_restarts >= self._limits.max_restarts:
            raise EngineKeepsDyingError(
                f"the engine was started again {self.num_restarts} times (--max-restarts)"
            )
        if self._fruitless >= _MOST_FRUITLESS + 1 and not self._suspects.next_group():
            raise EngineKeepsDyingError(
                f"the engine has ended {self._fruitless} times in a row without answering a line"
            )
        pause_s = min(_FIRST_PAUSE_S * 2**self._fruitless, _LONGEST_PAUSE_S)
        self.num_restarts += 1
        logger.warning("starting the engine again (%d) in %.0f s", self.num_restarts, pause_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)

    @asynccontextmanager
    async def _watched(self, server: LineServer) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch(server))
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self, server: LineServer) -> None:
        """Give the server up once its engine makes no step although lines are with it."""
        clock = asyncio.get_running_loop().time
        seen, since = self._life(), clock()
        while not server.gone.is_set():
            await asyncio.sleep(min(_LOOK_EVERY_S, self._limits.stall_s / 4))
            flow = self._session.flow
            life = self._life()
            if life != seen or flow is None or not flow.num_lines:
                seen, since = life, clock()
            elif clock() - since >= self._limits.stall_s:
                logger.error("the engine has made no step for %.0f s (--stall-s)", clock() - since)
                server.gone.set()
