# SPDX-License-Identifier: Apache-2.0
"""What is shown: the metric families, and which figure of the scheduler feeds each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_batchllm.stats.counters import NUM_LEVELS
from vllm_batchllm.stats.transport import OCCUPANCY, OTHER_HITS, level_figure

NAMESPACE = "vllm_batchllm:"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: a name without namespace and ``_total``, its kind, and where it comes from.

    label: name of the label beyond vLLM's own, or None. figures: figure of the scheduler by
    value of that label; by "" where there is none.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    figures: Mapping[str, str]
    label: str | None = None

    @property
    def full_name(self) -> str:
        """Name as it is shown, counters with ``_total``."""
        return f"{NAMESPACE}{self.name}{'_total' if self.kind == 'counter' else ''}"


@dataclass(frozen=True, slots=True)
class Sample:
    """An increase of a counter, or the value of a gauge."""

    family: Family
    label: str
    value: float


def _counter(name: str, figure: str, text: str) -> Family:
    return Family(name, "counter", text, {"": figure})


def _gauge(name: str, figure: str, text: str) -> Family:
    return Family(name, "gauge", text, {"": figure})


def _levels() -> dict[str, str]:
    """Level 1 is the widest shared prefix; the last one stands for all deeper ones."""
    names = [str(level) for level in range(1, NUM_LEVELS)] + [f"{NUM_LEVELS}+"]
    return {name: level_figure(index) for index, name in enumerate(names)} | {"other": OTHER_HITS}


FAMILIES: tuple[Family, ...] = (
    _counter("steps", "num_steps", "Steps that scheduled at least one token."),
    _counter("scheduled_tokens", "num_scheduled_tokens", "Tokens that went through the model."),
    _counter("admitted_requests", "num_admitted", "Requests admitted for the first time."),
    _counter("prompt_tokens", "prompt_tokens", "Prompt tokens of the admitted requests."),
    _counter(
        "computed_prompt_tokens",
        "computed_prompt_tokens",
        "Prompt tokens that went through the model, recomputation included.",
    ),
    Family(
        "admission_hit_tokens",
        "counter",
        "Prompt tokens found in the cache at the first admission, by level of the prefix tree.",
        _levels(),
        "level",
    ),
    _counter("preemptions", "num_preemptions", "Running requests sent back to wait."),
    Family(
        "admission_refusals",
        "counter",
        "Steps in which admissions ended before the waiting requests did, by reason.",
        {name: f"refused_{name}" for name in ("memory", "peak", "pace", "reserve")},
        "reason",
    ),
    _counter("plan_seconds", "plan_s", "Seconds spent on arranging the waiting requests."),
    _counter(
        "garbage_blocks", "num_garbage_blocks", "Cached blocks given up that nobody waited for."
    ),
    _counter(
        "needed_blocks_lost",
        "num_needed_lost",
        "Cached blocks given up although a waiting request needed them; should stay 0.",
    ),
    _counter("ended_requests", "num_ended", "Requests that have ended by themselves."),
    _counter("real_output_tokens", "real_tokens", "Output tokens of the requests that ended."),
    _gauge("held_requests", "num_held", "Requests held back for others now (option release)."),
    _counter("holds", "num_held_ever", "Requests that were held back."),
    _counter("hold_seconds", "hold_s", "Seconds for which requests were held, in all."),
    _counter("releases", "num_releases", "Batches and groups of held requests that were released."),
    _counter(
        "hold_saved_tokens",
        "hold_saved_tokens",
        "Prompt tokens that requests in a held group shared and had not found in the cache.",
    ),
    _counter(
        "hold_saved_joules",
        "hold_saved_j",
        "Joules saved against serving one-shot requests at once, by the model, not measured.",
    ),
    _counter(
        "steps_over_target", "num_steps_over_target", "Steps that took longer than their target."
    ),
    _counter(
        "steps_beyond_target",
        "num_steps_beyond_target",
        "Steps of which decodes alone were foreseen to take longer than the target.",
    ),
    _counter(
        "paused_prefills",
        "num_paused_prefills",
        "Prompts of batch requests that paused for interactive ones, summed over steps.",
    ),
    _gauge("kv_blocks", "kv_blocks", "KV blocks that requests can hold."),
    _gauge(
        "kv_held_blocks_peak", "held_blocks_peak", "Most KV blocks that requests held in any step."
    ),
    _gauge("kv_occupancy", OCCUPANCY, "Share of the KV blocks held by requests, at the last step."),
)

_BY_FIGURE: dict[str, tuple[Family, str]] = {
    figure: (family, label) for family in FAMILIES for label, figure in family.figures.items()
}


def samples(figures: Mapping[str, float]) -> Iterator[Sample]:
    """What ``figures`` (as :func:`~vllm_batchllm.stats.transport.detach` gives them) change.

    Figures that no family shows are left out.
    """
    for name, value in figures.items():
        if name in _BY_FIGURE:
            yield Sample(*_BY_FIGURE[name], value)
