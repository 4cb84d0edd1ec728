# SPDX-License-Identifier: Apache-2.0
"""Looks into a running server's engine process: for tests and soak runs, never installed with us.

``live_server.py`` puts this module in the way of a server that it starts, as two vLLM plugins under
one name: one adds a utility to the engine core, the other a route that calls it. A server that
anybody else starts has neither.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

import psutil

NAME = "batchllm_probe"
ROUTE = "/batchllm/probe"


def register() -> None:
    """Let the engine core answer ``batchllm_probe`` (idempotent)."""
    from vllm.v1.engine.core import EngineCore

    def batchllm_probe(self: Any) -> dict[str, Any]:
        return examine(self.scheduler)

    EngineCore.batchllm_probe = batchllm_probe


class ProbeRoute:
    """The endpoint plugin: ``GET /batchllm/probe``."""

    name = NAME
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Add the route to ``app``."""

        async def probe() -> dict[str, Any]:
            core = app.state.batchllm_probe_client.engine_core
            figures: dict[str, Any] = await core.call_utility_async(NAME)
            figures["front_rss"] = psutil.Process().memory_info().rss
            return figures

        app.add_api_route(ROUTE, probe, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Remember whom to ask."""
        state.batchllm_probe_client = engine_client


def examine(scheduler: Any) -> dict[str, Any]:
    """Sizes of everything that holds requests or hashes, and what is broken, as plain values.

    Works on vLLM's scheduler too, with the figures of ours left out.
    """
    pool = scheduler.kv_cache_manager.block_pool
    figures: dict[str, Any] = {
        "pid": os.getpid(),
        "rss": psutil.Process().memory_info().rss,
        "requests": len(scheduler.requests),
        "waiting": len(scheduler.waiting),
        "running": len(scheduler.running),
        "blocks": pool.num_gpu_blocks - 1,
        "blocks_held": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
        "problems": [],
    }
    if hasattr(scheduler, "batchllm_config"):
        figures |= _sizes(scheduler)
        figures["problems"] = _problems(scheduler)
        figures["counters"] = scheduler.batchllm_snapshot()
    return figures


def _problems(scheduler: Any) -> list[str]:
    """What ``check_integrity`` of the queue, the forests, the pool and the admission has to say."""
    running = {request.request_id for request in scheduler.running}
    checks = {
        "queue": scheduler.waiting.check_integrity,
        "pool": scheduler.kv_cache_manager.block_pool.check_integrity,
    }
    if scheduler.admission is not None:
        checks["admission"] = lambda: scheduler.admission.check_integrity(running)
    problems = []
    for name, check in checks.items():
        try:
            check()
        except AssertionError as error:
            problems.append(f"{name}: {error!r}")
    return problems


def _sizes(scheduler: Any) -> dict[str, int]:
    """Entries of every container of ours that requests fill."""
    queue, admission = scheduler.waiting, scheduler.admission
    pool = scheduler.kv_cache_manager.block_pool
    lines, forests = queue.group_queues, queue.forests
    ranked = [place for line in lines for place in (line._requeued, line._unhashed)]
    nodes = [node for forest in forests for node in _nodes(forest)]
    lists = {id(each.hashes): each.hashes for origins in pool._origins for each in origins}
    figures = {} if admission is None else _admission_sizes(admission)
    return figures | {
        "forest_requests": sum(map(len, forests)),
        "forest_nodes": len(nodes) - len(forests),  # but for the roots
        "heap_entries": sum(len(node.heap or ()) for node in nodes)
        + sum(len(line._heap) for line in ranked),
        "priorities": len(queue._queues._priorities),
        "levels": len(queue.levels),
        "filed_blocks": len(pool._demand.filed),
        "origin_lists": len(lists),
        "origin_hashes": sum(map(len, lists.values())),
    }


def _admission_sizes(admission: Any) -> dict[str, int]:
    return {
        "admitted": admission.num_running,
        "footprint_rows": len(admission.running.memory._hashes),
    }


def _nodes(forest: Any) -> list[Any]:
    nodes = [forest.root]
    for node in nodes:
        nodes.extend((node.children or {}).values())
    return nodes
