# SPDX-License-Identifier: Apache-2.0
"""What a batch job uses of vLLM: its command line, an engine behind its handlers, and its metrics."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

UNTIL_LINE = "vLLM serves one line of a batch by a public function"
UNTIL_ENGINE = "vLLM offers an engine with its handlers outside a server"
UNTIL_PARSER = "vLLM tells which options its run-batch takes"
LAUNCHERS = "vllm.entrypoints.launchers"

JOBS: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        f"{LAUNCHERS}.run_batch:BatchRequestInput",
        why="a body is checked by the model of its endpoint, as run-batch does",
        how="validated; its body goes to the handler",
        until=UNTIL_LINE,
    ),
    VLLMSymbol(
        f"{LAUNCHERS}.run_batch:make_transcription_wrapper",
        why="speech in a batch comes by a URL",
        how="called; wraps the handler of speech",
        until=UNTIL_LINE,
        parameters=("is_translation", "allowed_media_domains"),
    ),
    VLLMSymbol(
        f"{LAUNCHERS}.run_batch:validate_run_batch_args",
        why="an unknown reasoning parser is refused before the engine starts",
        how="called with the options",
        until=UNTIL_PARSER,
        parameters=("args",),
    ),
    VLLMSymbol(
        "vllm.entrypoints.serve:create_error_response",
        why="what a request raises becomes the error that the server would send",
        how="called",
        until=UNTIL_LINE,
        parameters=("message",),
    ),
    VLLMSymbol(
        "vllm.entrypoints.serve.engine.protocol:ErrorResponse",
        why="tell an error from an answer",
        how="isinstance; its error is read",
        until=UNTIL_LINE,
    ),
    VLLMSymbol(
        f"{LAUNCHERS}.api_server.entry:build_async_engine_client",
        why="one engine by vLLM's own options, ended whatever happens",
        how="entered with the parsed options",
        until=UNTIL_ENGINE,
        parameters=("args", "usage_context"),
    ),
    VLLMSymbol(
        f"{LAUNCHERS}.api_server.app_state:init_app_state",
        why="the handlers of all endpoints, with templates, parsers and adapters",
        how="called on a state of our own; openai_serving_chat.create_chat_completion, "
        "openai_serving_completion.create_completion, serving_embedding, serving_scores are read",
        until=UNTIL_ENGINE,
        parameters=("engine_client", "state", "args", "supported_tasks"),
    ),
    VLLMSymbol(
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.create_chat_completion",
        why="answer a chat",
        how="called without an HTTP request, as run-batch does",
        until=UNTIL_LINE,
        parameters=("request", "raw_request"),
    ),
    VLLMSymbol(
        "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.create_completion",
        why="answer a prompt",
        how="called without an HTTP request",
        until=UNTIL_LINE,
        parameters=("request", "raw_request"),
    ),
    VLLMSymbol(
        "vllm.usage.usage_lib:UsageContext",
        why="the sizes that vLLM chooses for its run-batch",
        how="OPENAI_BATCH_RUNNER is passed on",
        until=UNTIL_ENGINE,
    ),
    VLLMSymbol(
        "vllm.engine.arg_utils:AsyncEngineArgs.add_cli_args",
        why="every option of the engine is one of the job",
        how="called on the job's parser",
        until=UNTIL_PARSER,
        parameters=("parser",),
    ),
    VLLMSymbol(
        f"{LAUNCHERS}.run_batch:BaseFrontendArgs.add_cli_args",
        why="every option of the handlers is one of the job",
        how="called on the job's parser",
        until=UNTIL_PARSER,
        parameters=("parser",),
    ),
    VLLMSymbol(
        "vllm.utils.argparse_utils:FlexibleArgumentParser.error",
        why="options are written as vLLM's users write them",
        how="subclassed; overridden, raises our error instead of ending the process",
        until=UNTIL_PARSER,
        parameters=("message",),
    ),
    VLLMSymbol(
        "vllm.v1.metrics.loggers:PrometheusStatLogger.record",
        why="a job tells tokens, savings and a hanging engine by the metrics",
        how="vllm:prompt_tokens, generation_tokens, prefix_cache_queries, prefix_cache_hits, "
        "num_preemptions are read from the registry of the process",
        until="an engine client tells its totals",
    ),
)
