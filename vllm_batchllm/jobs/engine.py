# SPDX-License-Identifier: Apache-2.0
"""One of vLLM's engines for a job, with its handlers."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import State
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.run_batch import validate_run_batch_args
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.usage.usage_lib import UsageContext

from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.handlers import HandlerServer


@dataclass(frozen=True, slots=True)
class JobEngine:
    """A running engine. server: answers lines. window: how many it is told of. max_num_seqs: how many it runs at once."""

    server: HandlerServer
    window: Window
    max_num_seqs: int


@asynccontextmanager
async def started_engine(args: Namespace) -> AsyncIterator[JobEngine]:
    """An engine by vLLM's own options, ended at exit whatever state it is in."""
    _prepare(args)
    async with build_async_engine_client(
        args, usage_context=UsageContext.OPENAI_BATCH_RUNNER
    ) as client:
        state = State()
        await init_app_state(client, state, args, await client.get_supported_tasks())
        config = client.vllm_config
        num_seqs = int(config.scheduler_config.max_num_seqs)
        yield JobEngine(HandlerServer(state), Window.for_engine(config), num_seqs)


def _prepare(args: Namespace) -> None:
    """What vLLM's server and its run-batch do before an engine starts."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    validate_run_batch_args(args)
    for limit in (
        "max_num_queued_reqs",
        "max_num_queued_tokens",
    ):  # vLLM 0.33; a job refuses nobody
        if hasattr(args, limit):
            setattr(args, limit, None)
