# SPDX-License-Identifier: Apache-2.0
"""Several data-parallel ranks behind one ``vllm serve``: who is sent where."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

CLIENT = "vllm.v1.engine.core_client"
UNTIL_BALANCER = "vLLM's balancer knows which rank has which prefix, or lets a plugin choose"

RANKS: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        f"{CLIENT}:DPLBAsyncMPClient.get_core_engine_for_request",
        why="send a request to the rank that has its prefix",
        how="wrapped once our scheduler is chosen for several ranks; calls vLLM's with a rank set on the request, "
        "which it takes, or without; looks at reqs_in_flight first, as it does",
        until=UNTIL_BALANCER,
        parameters=("request",),
    ),
    VLLMSymbol(
        f"{CLIENT}:DPLBAsyncMPClient.__init__",
        why="who else sends requests, and what is unfinished",
        how="client_count, reqs_in_flight and engine_inflight are read",
        until=UNTIL_BALANCER,
        parameters=("client_count", "client_index"),
    ),
    VLLMSymbol(
        f"{CLIENT}:DPAsyncMPClient.__init__",
        why="what the ranks have to do",
        how="lb_engines is read; its first figure grows by client_count with a request that we place, as "
        "get_core_engine_for_request lets it grow with one that it places",
        until=UNTIL_BALANCER,
    ),
    VLLMSymbol(
        f"{CLIENT}:DPAsyncMPClient._ensure_stats_update_task",
        why="what the ranks have to do, as they report it",
        how="it replaces lb_engines; waiting and running requests are its first two figures",
        until=UNTIL_BALANCER,
    ),
    VLLMSymbol(
        f"{CLIENT}:DPAsyncMPClient.add_request_async",
        why="a rank is chosen before the request is sent",
        how="calls get_core_engine_for_request once, and then sends the request, whose rank is None again",
        until=UNTIL_BALANCER,
        parameters=("request",),
    ),
    VLLMSymbol(
        f"{CLIENT}:DPLBAsyncMPClient.process_engine_outputs",
        why="load that has ended is no load",
        how="it takes requests that have ended out of reqs_in_flight and engine_inflight",
        until=UNTIL_BALANCER,
        parameters=("outputs",),
    ),
    VLLMSymbol(
        f"{CLIENT}:MPClient.__init__",
        why="which engines there are, in the order of ranks, and which scheduler they run",
        how="core_engines and vllm_config are read",
        until=UNTIL_BALANCER,
        parameters=("vllm_config",),
    ),
)
