# SPDX-License-Identifier: Apache-2.0
"""How many lines the engine is told of at once: enough that it never waits and sees its groups whole, no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_batchllm.input.line import JobLine
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.scan import LineReader

_READ_AHEAD = 64
_FIRST_BYTES_PER_TOKEN = 4.0
_LEARNT_TOKENS = 10_000


@dataclass(frozen=True, slots=True)
class Window:
    """Bounds of what is with the engine.

    min_lines: always let in. max_lines: never more. new_tokens: between the two, prompt tokens that lines do not share with
    those before them.
    """

    min_lines: int
    max_lines: int
    new_tokens: int

    @classmethod
    def for_engine(cls, vllm_config: Any) -> Window:
        """Twice what can run, in requests and in KV, so that whoever ends is followed by somebody rendered and waiting."""
        num_engines = vllm_config.parallel_config.data_parallel_size
        running = vllm_config.scheduler_config.max_num_seqs * num_engines
        cache = vllm_config.cache_config
        kv_tokens = (cache.num_gpu_blocks or 0) * cache.block_size * num_engines
        return cls(2 * running, 4 * running, 2 * kv_tokens)

    def at_most(self, num_lines: int) -> Window:
        """The same, with no more than ``num_lines``."""
        return Window(
            min(self.min_lines, num_lines), min(self.max_lines, num_lines), self.new_tokens
        )


class Flow:
    """Counts what is with the engine, and says when there is room for more."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self.num_lines = 0
        self.is_halted = False
        self._new_bytes = 0
        self._text_bytes, self._prompt_tokens = 0.0, 0
        self._left = asyncio.Event()

    @property
    def bytes_per_token(self) -> float:
        """Of prompt text, as answers have shown it."""
        if self._prompt_tokens < _LEARNT_TOKENS:
            return _FIRST_BYTES_PER_TOKEN
        return max(self._text_bytes / self._prompt_tokens, 0.5)

    def has_room(self) -> bool:
        """Whether one more line may go to the engine."""
        window = self._window
        if self.num_lines < window.min_lines:
            return True
        few_tokens = self._new_bytes / self.bytes_per_token < window.new_tokens
        return self.num_lines < window.max_lines and few_tokens

    async def enter(self, new_bytes: int) -> bool:
        """Wait for room and take it; False where nothing more is let in."""
        while not self.is_halted and not self.has_room():
            self._left.clear()
            await self._left.wait()
        if self.is_halted:
            return False
        self.num_lines += 1
        self._new_bytes += new_bytes
        return True

    def leave(self, new_bytes: int, text_bytes: int, prompt_tokens: int) -> None:
        """Give room back; the line had so much text and so many tokens (0 where nobody counted)."""
        self.num_lines -= 1
        self._new_bytes -= new_bytes
        if prompt_tokens:
            self._text_bytes += text_bytes
            self._prompt_tokens += prompt_tokens
        self._left.set()

    def halt(self) -> None:
        """Let nothing more in."""
        self.is_halted = True
        self._left.set()


Read = tuple[int, JobLine | BadLineError]


async def read_ahead(reader: LineReader, lines: Sequence[int]) -> AsyncGenerator[Read, None]:
    """Each of ``lines`` with its request or what is wrong with it, read and parsed in a thread while others are used."""
    starts = range(0, len(lines), _READ_AHEAD)
    pending: asyncio.Task[list[Read]] | None = None
    try:
        for start in starts:
            part = lines[start : start + _READ_AHEAD]
            following = asyncio.create_task(asyncio.to_thread(_read, reader, part))
            if pending is not None:
                for one in await pending:
                    yield one
            pending = following
        if pending is not None:
            for one in await pending:
                yield one
    finally:
        if pending is not None and not pending.done():
            await asyncio.wait([pending])


def _read(reader: LineReader, lines: Sequence[int]) -> list[Read]:
    found: list[Read] = []
    for index in lines:
        try:
            found.append((int(index), reader.line(int(index))))
        except BadLineError as error:
            found.append((int(index), error))
    return found
