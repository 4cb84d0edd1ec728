# SPDX-License-Identifier: Apache-2.0
"""One of vLLM's engines for a job, with its handlers; and what its metrics say of its life."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import REGISTRY
from starlette.datastructures import State
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.usage.usage_lib import UsageContext

from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.handlers import HandlerServer

_PREFIX = "vllm:"
_TOTALS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "asked_tokens": "vllm:prefix_cache_queries_total",
    "cached_tokens": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
}


@dataclass(frozen=True, slots=True)
class JobEngine:
    """A running engine. server: answers lines. window: how many it is told of."""

    server: HandlerServer
    window: Window


@asynccontextmanager
async def started_engine(args: Namespace) -> AsyncIterator[JobEngine]:
    """An engine by vLLM's own options, ended at exit whatever state it is in."""
    async with build_async_engine_client(
        args, usage_context=UsageContext.OPENAI_BATCH_RUNNER
    ) as client:
        state = State()
        await init_app_state(client, state, args, await client.get_supported_tasks())
        yield JobEngine(HandlerServer(state), Window.for_engine(client.vllm_config))


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Totals of the running engine: tokens of prompts, of outputs, looked up in the cache, found there; preemptions.

    life: changes with every step that the engine reports.
    """

    prompt_tokens: float
    output_tokens: float
    asked_tokens: float
    cached_tokens: float
    preemptions: float
    life: int


def engine_figures() -> EngineFigures:
    """From vLLM's metrics in this process; it makes them anew with each engine."""
    values: dict[str, float] = {}
    everything: list[float] = []
    for metric in REGISTRY.collect():
        if not metric.name.startswith(_PREFIX):
            continue
        for sample in metric.samples:
            everything.append(sample.value)
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    totals = {name: values.get(sample, 0.0) for name, sample in _TOTALS.items()}
    return EngineFigures(**totals, life=hash(tuple(everything)))
