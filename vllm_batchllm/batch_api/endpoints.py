# SPDX-License-Identifier: Apache-2.0
"""The Batch API as one of vLLM's endpoint plugins: its routes on the app, its runner beside the engine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from typing import Any

from fastapi import FastAPI

from vllm_batchllm.batch_api.contents import Contents
from vllm_batchllm.batch_api.database import BUSY_S, Database
from vllm_batchllm.batch_api.lease import Lease
from vllm_batchllm.batch_api.metrics import BatchMetrics
from vllm_batchllm.batch_api.migrations import migrate
from vllm_batchllm.batch_api.options import BatchOptions
from vllm_batchllm.batch_api.routes import Store, router_of
from vllm_batchllm.batch_api.runner import Runner
from vllm_batchllm.batch_api.running import GRACE_S, Tools
from vllm_batchllm.batch_api.server_work import work_of
from vllm_batchllm.errors import UsageError
from vllm_batchllm.log import get_logger

logger = get_logger(__name__)

OURS = ("/v1/files", "/v1/batches")


def attach_batch_api(app: FastAPI) -> None:
    """Put the Batch API on an app of vLLM, unless vLLM has one; vLLM starts it with the rest.

    Raises:
        UsageError: folder or database cannot be used; names the option.
    """
    taken = [path for path in OURS if any(getattr(r, "path", "") == path for r in app.routes)]
    if taken:
        logger.info(
            "The Batch API of vllm-batchllm stands back: this server has %s already",
            " and ".join(taken),
        )
        return
    plugin = BatchEndpoints(BatchOptions.from_args(app.state.args))
    plugin.attach_router(app)
    app.state.endpoint_plugins = [*getattr(app.state, "endpoint_plugins", []), plugin]
    app.openapi_schema = None


class BatchEndpoints:
    """What vLLM calls of an endpoint plugin."""

    def __init__(self, options: BatchOptions) -> None:
        self._store = open_store(options)
        self._runner: Runner | None = None
        self._task: asyncio.Task[None] | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Put the routes on the app."""
        app.include_router(router_of(self._store))

    async def init_state(self, engine_client: Any, state: Any, args: argparse.Namespace) -> None:
        """Begin to run batches: the engine is there, and every handler of the server."""
        options, store = self._store.options, self._store
        lease = Lease(store.database)
        work = work_of(
            engine_client, state, options.priority, lambda: self._is_ending(engine_client)
        )
        tools = Tools(store.database, store.contents, work, lease.holder, options.max_requests)
        self._runner = Runner(tools, lease, concurrency=options.concurrency, metrics=_metrics())
        self._end_before(engine_client)
        self._task = asyncio.create_task(self._runner.run(), name="batch runner")
        logger.info("Batch API: /v1/files and /v1/batches, kept in %s", options.directory)

    def _is_ending(self, engine_client: Any) -> bool:
        is_stopping = self._runner is not None and self._runner.is_stopping
        return bool(engine_client.errored) or (is_stopping and self._is_shut)

    _is_shut = False

    def _end_before(self, engine_client: Any) -> None:
        """Have the runner end before the engine does: an aborted request looks like an answer."""
        loop, shutdown = asyncio.get_running_loop(), engine_client.shutdown

        async def end() -> None:
            if self._runner is not None and self._task is not None:
                self._runner.stop()
                await asyncio.wait([self._task], timeout=GRACE_S * 2)

        def shutdown_after_batches(*args: Any, **kwargs: Any) -> Any:
            if not self._is_shut and loop.is_running() and not _is_in(loop):
                with contextlib.suppress(TimeoutError):  # the engine ends all the same
                    asyncio.run_coroutine_threadsafe(end(), loop).result(GRACE_S * 3)
            self._is_shut = True
            return shutdown(*args, **kwargs)

        engine_client.shutdown = shutdown_after_batches


def open_store(options: BatchOptions, busy_s: float = BUSY_S) -> Store:
    """Folder and database, ready.

    Raises:
        UsageError: one of them cannot be used; names the option and the reason.
    """
    try:
        contents = Contents(options.directory)
    except OSError as error:
        raise UsageError(
            f"--batch-dir {options.directory} cannot be used: {error.strerror or error}; give a folder "
            "that this user may write to"
        ) from None
    database = Database(options.database_url, busy_s=busy_s)
    database.do(migrate)
    return Store(options, database, contents)


def _is_in(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _metrics() -> BatchMetrics:
    from prometheus_client import REGISTRY

    return BatchMetrics(REGISTRY)
