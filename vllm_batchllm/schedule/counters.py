# SPDX-License-Identifier: Apache-2.0
"""Exact counters of what the scheduler did; plain numbers that can cross processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


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
    hash_block_size: tokens per block hash, the grain of sharing.
    """

    num_steps: int = 0
    num_scheduled_tokens: int = 0
    num_admitted: int = 0
    prompt_tokens: int = 0
    admission_hit_tokens: int = 0
    computed_prompt_tokens: int = 0
    num_preemptions: int = 0
    plan_s: float = 0.0
    hash_block_size: int = 1

    def step(self, num_tokens: int) -> None:
        """Count one step of ``num_tokens`` tokens; an empty one does not count."""
        self.num_steps += num_tokens > 0
        self.num_scheduled_tokens += num_tokens

    def admission(self, num_prompt_tokens: int, num_hit_tokens: int, first: bool) -> None:
        """Count a request that starts to run with ``num_hit_tokens`` tokens already computed."""
        num_hits = min(num_hit_tokens, num_prompt_tokens)
        self.computed_prompt_tokens += num_prompt_tokens - num_hits
        if first:
            self.num_admitted += 1
            self.prompt_tokens += num_prompt_tokens
            self.admission_hit_tokens += num_hits

    def cut_short(self, num_prompt_tokens: int, num_computed_tokens: int) -> None:
        """Take back the prompt tokens that a stopped prefill will not compute."""
        self.computed_prompt_tokens -= max(num_prompt_tokens - num_computed_tokens, 0)

    def to_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return asdict(self)

    @classmethod
    def between(cls, before: dict[str, float], after: dict[str, float]) -> ScheduleCounters:
        """What happened between two snapshots made by :meth:`to_dict`."""
        values = {field.name: after[field.name] - before[field.name] for field in fields(cls)}
        values["hash_block_size"] = after["hash_block_size"]
        return cls(**values)  # type: ignore[arg-type]
