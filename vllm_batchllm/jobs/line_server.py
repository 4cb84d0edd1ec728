# SPDX-License-Identifier: Apache-2.0
"""What answers the lines of a job, as the job sees it: one engine, many, or the server that is running anyway."""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

from vllm_batchllm.input.line import JobLine
from vllm_batchllm.jobs.answer import Answer


class EngineGoneError(RuntimeError):
    """The engine has died, or was given up."""


class LineServer(Protocol):
    """Answers single lines, many at a time.

    gone: set once the engine behind it has died, or was given up by whoever watches it.
    """

    gone: asyncio.Event

    async def serve(self, line: JobLine) -> Answer:
        """The answer to ``line``; a refusal is one, too.

        Raises:
            EngineGoneError: the engine behind it has died; nobody knows what became of the line.
        """


class Ending(enum.Enum):
    """How feeding ended: every line has its answer, it was asked to stop, or the engine is gone."""

    DONE = enum.auto()
    STOPPED = enum.auto()
    ENGINE_GONE = enum.auto()
