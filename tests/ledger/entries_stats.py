# SPDX-License-Identifier: Apache-2.0
"""Figures on their way from the scheduler to whoever shows them."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
UNTIL_STATS = "SchedulerStats carries figures of other schedulers, and vLLM shows them"

STATS: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        f"{SCHEDULER}.make_stats",
        why="send what the counters gained to the front end",
        how="overridden; calls super and adds to the result",
        until=UNTIL_STATS,
    ),
    VLLMSymbol(
        "vllm.v1.metrics.stats:SchedulerStats",
        why="the only figures of a step that reach the front end",
        how="prefixed keys in its map of KV fetches, taken out again before vLLM's loggers look",
        until=UNTIL_STATS,
        parameters=("num_kv_fetch_reqs_by_stage",),
    ),
    VLLMSymbol(
        "vllm.v1.metrics.loggers:StatLoggerManager.__init__",
        why="show our metrics beside vLLM's",
        how="wrapped once our scheduler is chosen; puts ours first in stat_loggers, for the "
        "engines in engine_indexes",
        until="vLLM has a stat logger entry point that respects --disable-log-stats",
        parameters=("vllm_config", "engine_idxs"),
    ),
    VLLMSymbol(
        "vllm.v1.metrics.loggers:PrometheusStatLogger",
        why="under Ray Serve LLM and Ray Data LLM, vLLM's own metrics are Ray's, and ours go with them",
        how="where one has another `_counter_cls` than that of prometheus_client, it and `_gauge_cls` make our collectors",
        until=UNTIL_STATS,
    ),
    VLLMSymbol(
        "vllm.v1.metrics.loggers:AggregateStatLoggerBase",
        why="base class of our stat logger",
        how="subclassed",
        until=UNTIL_STATS,
        parameters=("vllm_config", "engine_indexes"),
    ),
    VLLMSymbol(
        "vllm.v1.engine.core:EngineCore",
        why="read the counters from another process",
        how="one extra method, added when our scheduler is built, called as a utility",
        until="SchedulerStats carries these counters to LLM",
    ),
)
