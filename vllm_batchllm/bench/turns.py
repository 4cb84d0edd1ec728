# SPDX-License-Identifier: Apache-2.0
"""Arms that take turns every few steps, so that a slow moment of the machine hits all alike.

Each arm has an engine of its own, which keeps its state between two turns, and a clock that runs while it
is its turn. The next turn is that of the arm which is least far with its outputs: so all end at about the same
time, and no arm has a quiet or a busy hour to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_batchllm.measure.recorder import StepRecord

TURN_S = 0.05
"""A turn lasts as long or one step, whatever is longer: short beside what slows a machine down, long
beside what a turn costs (caches of the processor are cold)."""


@dataclass(slots=True)
class Lane:
    """One arm on its way through a batch.

    engine: vLLM's ``LLMEngine``, in this process. requests: (prompt, sampling parameters) in the order in
    which they are queued. num_output_tokens, num_prompt_tokens: that the batch has. wall_s, cpu_s: of its own turns.
    """

    arm: str
    engine: Any
    requests: Sequence[tuple[Any, Any]]
    record: StepRecord
    num_output_tokens: int
    num_prompt_tokens: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    outputs: dict[int, list[int]] = field(default_factory=dict)
    _num_steps_seen: int = 0
    _num_tokens: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether every request has its output."""
        return len(self.outputs) == len(self.requests)

    def progress(self) -> tuple[float, float]:
        """Share of the output tokens that are made; and, where that says nothing yet, its own time."""
        made = self._scheduled_tokens() - self.record.computed_prompt_tokens
        return made / max(self.num_output_tokens, 1), self.wall_s

    @property
    def num_tokens(self) -> int:
        """Of the batch, prompts and outputs."""
        return self.num_prompt_tokens + self.num_output_tokens

    def tokens_done(self) -> int:
        """Of `num_tokens`: computed, or found in the cache. What is computed twice counts twice, until all are done."""
        return min(self._scheduled_tokens() + self.record.admission_hit_tokens, self.num_tokens)

    def _scheduled_tokens(self) -> int:
        for num_tokens in self.record.step_tokens[self._num_steps_seen :]:
            self._num_tokens += num_tokens
        self._num_steps_seen = len(self.record.step_tokens)
        return self._num_tokens

    def queue(self) -> None:
        """Queue all requests; its own time, as every step is."""
        with _Timer(self):
            for number, (prompt, params) in enumerate(self.requests):
                self.engine.add_request(str(number), prompt, params)

    def turn(self, clock: Callable[[], float]) -> None:
        """Steps for ``TURN_S``, one at least."""
        with _Timer(self):
            end_s = clock() + TURN_S
            while not self.has_ended:
                for output in self.engine.step():
                    if output.finished:
                        name = int(output.request_id)
                        self.outputs[name] = list(output.outputs[0].token_ids)
                if clock() >= end_s:
                    return


@dataclass(slots=True)
class _Timer:
    """Adds the time of a block to a lane."""

    lane: Lane
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __enter__(self) -> None:
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.lane.wall_s += time.perf_counter() - self.wall_s
        self.lane.cpu_s += time.process_time() - self.cpu_s


def take_turns(
    lanes: Sequence[Lane],
    clock: Callable[[], float] = time.perf_counter,
    on_turn: Callable[[], None] = lambda: None,
) -> None:
    """Serve every lane's requests to their end. ``on_turn`` is called between turns, at nobody's expense.

    A request that never ends would keep a lane for ever, as it would keep the engine alone.
    """
    for lane in lanes:
        lane.queue()
    going = list(lanes)
    while going:
        least = min(going, key=Lane.progress)
        least.turn(clock)
        on_turn()
        if least.has_ended:
            going.remove(least)
