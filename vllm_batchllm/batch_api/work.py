# SPDX-License-Identifier: Apache-2.0
"""What answers the lines of batches: the handlers of the server, after its interactive requests."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vllm_batchllm.input.line import CHAT, COMPLETIONS, EMBEDDINGS, JobLine
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.line_server import EngineGoneError, LineServer

ENDPOINTS: Final = (CHAT, COMPLETIONS, EMBEDDINGS, "/v1/score", "/score", "/v1/rerank", "/rerank")
EXPIRED: Final = Answer.of_error(
    "batch_expired", "This request could not be executed before the completion window expired."
)


@dataclass(frozen=True, slots=True)
class Work:
    """What the runner drives.

    server: answers lines. window: how many it is told of at once. models: names that it serves now,
    None where adapters are found by name as they are asked for.
    """

    server: LineServer
    window: Window
    models: Callable[[], frozenset[str] | None]


class LaterServer:
    """A server whose lines come after interactive requests, and whose answers are none once it ends.

    Args:
        priority: that lines get at least; larger is later. None where the engine knows no priorities.
        is_ending: whether what an ended engine says would be taken for an answer.
    """

    def __init__(
        self, server: LineServer, priority: int | None, is_ending: Callable[[], bool]
    ) -> None:
        self._server, self._priority, self._is_ending = server, priority, is_ending
        # Never set: requests may be aborted by others on a server that goes on, and then so do batches.
        self.gone = asyncio.Event()

    async def serve(self, line: JobLine) -> Answer:
        """The answer. Raises EngineGoneError where the engine ends before it is whole."""
        answer = await self._server.serve(later(line, self._priority))
        if self._is_ending():
            raise EngineGoneError("the server ends")
        return answer


class ExpiredServer:
    """Answers every line with the error that its batch has expired."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def serve(self, line: JobLine) -> Answer:
        """The error."""
        return EXPIRED


def later(line: JobLine, priority: int | None) -> JobLine:
    """The line with a priority of at least ``priority``; one that is no number is left to the endpoint to refuse."""
    given = line.body.get("priority", 0)
    if priority is None or type(given) is not int:
        return line
    return dataclasses.replace(line, body={**line.body, "priority": max(given, priority)})
