# SPDX-License-Identifier: Apache-2.0
"""What the metrics of the engine in this process say: its totals, and that it lives."""

from __future__ import annotations

from dataclasses import dataclass

_PREFIX = "vllm:"
_TOTALS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "asked_tokens": "vllm:prefix_cache_queries_total",
    "cached_tokens": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
}


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Totals of the running engine: tokens of prompts, of outputs, looked up in the cache, found there; preemptions.

    life: changes with every step that the engine reports. num_running: requests that it computes.
    """

    prompt_tokens: float
    output_tokens: float
    asked_tokens: float
    cached_tokens: float
    preemptions: float
    life: int
    num_running: int = 0


def engine_figures() -> EngineFigures:
    """From vLLM's metrics in this process; it makes them anew with each engine."""
    from prometheus_client import REGISTRY  # comes with vLLM

    values: dict[str, float] = {}
    everything: list[float] = []
    for metric in REGISTRY.collect():
        if not metric.name.startswith(_PREFIX):
            continue
        for sample in metric.samples:
            everything.append(sample.value)
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    totals = {name: values.get(sample, 0.0) for name, sample in _TOTALS.items()}
    num_running = int(values.get("vllm:num_requests_running", 0))
    return EngineFigures(**totals, life=hash(tuple(everything)), num_running=num_running)
