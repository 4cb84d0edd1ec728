# SPDX-License-Identifier: Apache-2.0
"""The Batch API of ``vllm serve``: its options, its routes, and what answers its lines."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

UNTIL_ROUTES = "vLLM has /v1/files and /v1/batches of its own (vllm#44445), or lets a general plugin attach routes"
UNTIL_MODELS = "vLLM tells by a public method whether a model is served"
UNTIL_END = "vLLM tells endpoint plugins that the server ends, before its engine does"

BATCH_API: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.entrypoints.launchers.app:attach_endpoint_plugins",
        why="put our routes beside vLLM's, behind its check of API keys",
        how="wrapped in the module of the app, calls vLLM's; with --enable-batch-api it adds our routes and "
        "our object to app.state.endpoint_plugins",
        until=UNTIL_ROUTES,
        parameters=("app", "supported_tasks"),
        source="vllm.plugins.endpoint_plugins.interface:attach_endpoint_plugins",
    ),
    VLLMSymbol(
        "vllm.entrypoints.launchers.app:build_app",
        why="know the command line where routes are attached",
        how="app.state.args is set before attach_endpoint_plugins is called, and middleware comes after it",
        until=UNTIL_ROUTES,
        parameters=("args",),
    ),
    VLLMSymbol(
        "vllm.plugins.endpoint_plugins.interface:init_endpoint_plugins_state",
        why="begin to run batches once the engine and every handler are there",
        how="calls init_state of each object in app.state.endpoint_plugins, ours among them",
        until=UNTIL_ROUTES,
        parameters=("engine_client", "state", "args"),
    ),
    VLLMSymbol(
        "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware.__call__",
        why="nobody reads files without an API key where there are keys",
        how="guards every path under /v1; ours are there",
        until=UNTIL_ROUTES,
    ),
    VLLMSymbol(
        "vllm.entrypoints.launchers.launcher:serve_http",
        why="stop feeding before the engine ends: an aborted request looks like an answer",
        how="on SIGTERM it calls engine_client.shutdown in a thread, before the HTTP server ends",
        until=UNTIL_END,
    ),
    VLLMSymbol(
        "vllm.v1.engine.async_llm:AsyncLLM.shutdown",
        why="stop feeding before the engine ends",
        how="replaced on the server's one object; waits for the runner, then calls vLLM's",
        until=UNTIL_END,
        parameters=("timeout",),
    ),
    VLLMSymbol(
        "vllm.v1.engine.async_llm:AsyncLLM.errored",
        why="take nothing for an answer that a dead engine has cut short",
        how="read",
        until=UNTIL_END,
    ),
    VLLMSymbol(
        "vllm.entrypoints.openai.models.serving:OpenAIServingModels.__init__",
        why="refuse batches for models that are not served, before a line is computed",
        how="base_model_paths, lora_requests and lora_resolvers are read",
        until=UNTIL_MODELS,
    ),
)
