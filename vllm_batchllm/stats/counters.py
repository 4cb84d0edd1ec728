# SPDX-License-Identifier: Apache-2.0
"""Exact counters of what the scheduler did; plain numbers that can cross processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

NUM_LEVELS = 8
"""Levels of the prefix tree that are counted apart."""

GAUGES = (
    "held_blocks_peak",
    "hash_block_size",
    "kv_blocks",
    "max_tokens_held",
    "num_held",
)
"""Figures that say how things are, not how much happened."""


@dataclass(slots=True)
class ScheduleCounters:
    """Totals since the scheduler was built (tokens and steps, not rates).

    num_steps: steps that scheduled at least one token.
    num_scheduled_tokens: prompt and output tokens that went through the model.
    num_admitted: requests admitted for the first time.
    prompt_tokens: prompt tokens of those.
    admission_hit_tokens: of those, the ones found in the cache at the first admission.
    computed_prompt_tokens: prompt tokens that went through the model, recomputation after a
        preemption included.
    num_preemptions: running requests sent back to wait.
    plan_s: seconds spent on arranging the waiting requests.
    refused_memory, refused_peak, refused_pace, refused_reserve: steps in which admissions ended because vLLM
        found no room, because the future peak was too high, to keep ages mixed, or for what interactive
        requests may need.
    held_blocks: KV blocks that requests held, summed over ``num_memory_steps`` steps;
        held_blocks_peak: the most in any step.
    num_ended: requests that have ended by themselves; real_tokens: of their outputs.
    num_garbage_blocks: cached blocks given up that nobody waited for; num_needed_lost: those
        given up although somebody did.
    hit_tokens_by_level: ``admission_hit_tokens`` by level of the prefix tree, the widest shared
        prefix first; the last entry holds all deeper levels.
    hash_block_size: tokens per block hash, the grain of sharing. kv_blocks: KV blocks that
        requests can hold. max_tokens_held: tokens of one request that fit the whole cache; 0 if
        that is not bounded.
    num_held: requests held back now; num_held_ever: so far, for hold_s seconds in all. num_releases: batches and groups
        of them. hold_saved_tokens: prompt tokens that those who joined a held group shared with it, not cached.
        hold_saved_j: joules against serving at once, by the model.
    num_steps_over_target: steps that took longer than their target; num_steps_beyond_target: those of which decodes
        alone were foreseen to. num_paused_prefills: prompts of batch requests that paused, summed over steps.
    """

    num_steps: int = 0
    num_scheduled_tokens: int = 0
    num_admitted: int = 0
    prompt_tokens: int = 0
    admission_hit_tokens: int = 0
    computed_prompt_tokens: int = 0
    num_preemptions: int = 0
    plan_s: float = 0.0
    refused_memory: int = 0
    refused_peak: int = 0
    refused_pace: int = 0
    num_memory_steps: int = 0
    held_blocks: int = 0
    held_blocks_peak: int = 0
    num_ended: int = 0
    real_tokens: int = 0
    num_garbage_blocks: int = 0
    num_needed_lost: int = 0
    hit_tokens_by_level: list[int] = field(default_factory=lambda: [0] * NUM_LEVELS)
    hash_block_size: int = 1
    kv_blocks: int = 0
    max_tokens_held: int = 0
    refused_reserve: int = 0
    num_held: int = 0
    num_held_ever: int = 0
    hold_s: float = 0.0
    num_releases: int = 0
    hold_saved_tokens: int = 0
    hold_saved_j: float = 0.0
    num_steps_over_target: int = 0
    num_steps_beyond_target: int = 0
    num_paused_prefills: int = 0

    def step(self, num_tokens: int) -> None:
        """Count one step of ``num_tokens`` tokens; an empty one does not count."""
        self.num_steps += num_tokens > 0
        self.num_scheduled_tokens += num_tokens

    def admission(
        self,
        num_prompt_tokens: int,
        num_hit_tokens: int,
        first: bool,
        levels: Sequence[int] = (),
    ) -> None:
        """Count a request that starts to run with ``num_hit_tokens`` tokens already computed.

        ``levels``: block hashes at which its shared prefixes end, the widest first.
        """
        num_hits = min(num_hit_tokens, num_prompt_tokens)
        self.computed_prompt_tokens += num_prompt_tokens - num_hits
        if first:
            self.num_admitted += 1
            self.prompt_tokens += num_prompt_tokens
            self.admission_hit_tokens += num_hits
            self._hits_by_level(num_hits, levels)

    def _hits_by_level(self, num_hits: int, levels: Sequence[int]) -> None:
        start = 0
        for level, end in enumerate(levels):
            reached = min(end * self.hash_block_size, num_hits)
            self.hit_tokens_by_level[min(level, NUM_LEVELS - 1)] += reached - start
            start = reached

    def cut_short(self, num_prompt_tokens: int, num_computed_tokens: int) -> None:
        """Take back the prompt tokens that a stopped prefill will not compute."""
        self.computed_prompt_tokens -= max(num_prompt_tokens - num_computed_tokens, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name, and one list of numbers."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        values["hit_tokens_by_level"] = list(self.hit_tokens_by_level)
        return values

    @classmethod
    def between(cls, before: dict[str, Any], after: dict[str, Any]) -> ScheduleCounters:
        """What happened between two snapshots made by :meth:`to_dict`; gauges as they are now."""
        return cls(**{item.name: _change(item.name, before, after) for item in fields(cls)})


def _change(name: str, before: dict[str, Any], after: dict[str, Any]) -> Any:
    if name in GAUGES:
        return after[name]
    if isinstance(after[name], list):
        return [new - old for old, new in zip(before[name], after[name], strict=True)]
    return after[name] - before[name]
