# SPDX-License-Identifier: Apache-2.0
"""A Batch API without an engine: the real routes, database, journals and runner, on a server that echoes."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry

from vllm_batchllm.batch_api.endpoints import open_store
from vllm_batchllm.batch_api.lease import Lease
from vllm_batchllm.batch_api.metrics import BatchMetrics
from vllm_batchllm.batch_api.options import DATABASE_NAME, BatchOptions
from vllm_batchllm.batch_api.routes import router_of
from vllm_batchllm.batch_api.runner import Runner
from vllm_batchllm.batch_api.running import Tools, nothing
from vllm_batchllm.batch_api.work import LaterServer, Work
from vllm_batchllm.input.line import CHAT, JobLine
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.feed import Window

MODEL = "echo"


class Echo:
    """Answers a line with its prompt; once `hold` is called only after `let_go`."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.served: collections.Counter[str] = collections.Counter()
        self.waiting: set[str] = set()
        self.failpoint = nothing
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    async def serve(self, line: JobLine) -> Answer:
        self.waiting.add(line.custom_id)
        try:
            if "quick" not in line.body:
                await self._open.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:  # as vLLM's handlers do
            error = {"message": "Client disconnected", "type": "BadRequestError", "code": 400}
            return Answer(400, {"error": error}, {"code": "x", "message": "Client disconnected"})
        finally:
            self.waiting.discard(line.custom_id)
        self.failpoint("serving")
        self.served[line.custom_id] += 1
        if "fail" in line.body:
            error = {"message": "as asked", "type": "BadRequestError", "code": 400}
            return Answer(400, {"error": error}, {"code": "BadRequestError", "message": "as asked"})
        text = line.body["messages"][0]["content"]
        return Answer(200, {"choices": [{"message": {"content": text}}], "usage": {}})


class World:
    """One server process of a Batch API in ``folder``; several may share it.

    Args:
        options: beside the folder, of `BatchOptions`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        failpoint: Callable[[str], None] = nothing,
        clock: Callable[[], float] = time.time,
        term_s: float = 10.0,
        **options: Any,
    ) -> None:
        url = options.pop("database_url", f"sqlite:///{folder / DATABASE_NAME}")
        self.options = BatchOptions(folder, url, **options)
        self.store = open_store(self.options, busy_s=0.1)
        self.app = FastAPI()
        self.app.include_router(router_of(self.store))
        self.server = Echo()
        self.server.failpoint = failpoint
        self.registry = CollectorRegistry()
        self.models = frozenset({MODEL})
        server = LaterServer(self.server, 1000, lambda: False)
        work = Work(server, Window(4, 8, 10_000), lambda: self.models)
        self.lease = Lease(self.store.database, term_s=term_s)
        self.tools = Tools(
            self.store.database,
            self.store.contents,
            work,
            self.lease.holder,
            self.options.max_requests,
            clock=clock,
            failpoint=failpoint,
            grace_s=0.2,
        )

    def runner(self) -> Runner:
        return Runner(
            self.tools,
            self.lease,
            concurrency=self.options.concurrency,
            metrics=BatchMetrics(self.registry),
            poll_s=0.02,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Runner]:
        """The runner, until the block ends; what it raised is raised."""
        runner = self.runner()
        task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            runner.stop()
            await task

    def http(self, key: str | None = "alice") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers)

    def client(self, key: str = "alice") -> AsyncOpenAI:
        transport = httpx.ASGITransport(self.app)
        return AsyncOpenAI(
            api_key=key,
            base_url="http://here/v1",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=transport),
        )

    def with_tools(self, **changes: Any) -> None:
        self.tools = dataclasses.replace(self.tools, **changes)


def line(custom_id: str, *, url: str = CHAT, model: str = MODEL, **body: Any) -> dict[str, Any]:
    content = body.pop("content", f"say {custom_id}")
    messages = [{"role": "user", "content": content}]
    whole = {"model": model, "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": whole}


def jsonl(*lines: Any) -> bytes:
    packed = (one if isinstance(one, str) else json.dumps(one) for one in lines)
    return "".join(f"{one}\n" for one in packed).encode()


async def submit(client: AsyncOpenAI, content: bytes, **fields: Any) -> Any:
    """Upload and create; the batch."""
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    asked = {"endpoint": CHAT, "completion_window": "24h"} | fields
    return await client.batches.create(input_file_id=file.id, **asked)


FINISHED = ("completed", "failed", "expired", "cancelled")


async def until(client: AsyncOpenAI, batch_id: str, *states: str, timeout_s: float = 20) -> Any:
    """The batch, once it is in one of ``states`` (finished, where none is named)."""
    deadline = time.monotonic() + timeout_s
    while True:
        batch = await client.batches.retrieve(batch_id)
        if batch.status in (states or FINISHED):
            return batch
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(0.02)


async def lines_of(client: AsyncOpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a result file by custom_id, none of which is there twice; none without a file."""
    if file_id is None:
        return {}
    text = (await client.files.content(file_id)).text
    records = [json.loads(one) for one in text.splitlines()]
    by_id = {record["custom_id"]: record for record in records}
    assert len(by_id) == len(records), "a line was answered twice"
    return by_id
