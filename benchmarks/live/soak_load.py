# SPDX-License-Identifier: Apache-2.0
"""A mixed online load with a fixed seed: what each of many clients asks next."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import httpx
from abuse_clients import FAILURES, ask, completion

NUM_LIVE_PREFIXES = 24
"""Documents that are asked about at one time; one is replaced with every 40th request."""

KINDS = {
    "shared": 40,
    "stream": 15,
    "abort": 10,
    "alone": 8,
    "sampled": 8,
    "salted": 6,
    "hinted": 5,
    "long": 4,
    "bad": 4,
}
"""What is asked, and how often relative to the others."""


class Load:
    """Endless requests; ``counts`` says how they ended, by kind and outcome."""

    def __init__(self, url: str, num_clients: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self._draw = random.Random(seed)
        self._num_clients = num_clients
        self._num_asked = 0
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=num_clients)
        self._http = httpx.AsyncClient(base_url=url, timeout=300, limits=limits)

    async def run(self, seconds: float) -> None:
        """All clients, until the time is over and their last requests have ended.

        For 5 s of every minute nobody asks anything.
        """
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(self._client(deadline) for _ in range(self._num_clients)))
        await self._http.aclose()

    async def _client(self, deadline: float) -> None:
        while (now := time.monotonic()) < deadline:
            pause = 5 - (deadline - now) % 60
            if pause > 0:
                await asyncio.sleep(pause)
            kind = self._draw.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                outcome = await self._ask(kind)
            except FAILURES as error:
                outcome = "lost"
                self.lost.append(f"{kind}: {error!r}"[:300])
            self.counts[f"{kind} {outcome}"] += 1

    async def _ask(self, kind: str) -> str:
        body = self._body(kind)
        if kind == "abort":
            return await self._abort(body, self._draw.randrange(0, 8))
        reply = await ask(self._http, body)
        if reply.outcome == "lost":
            self.lost.append(f"{kind}: {reply.detail}")
        return reply.outcome

    def _body(self, kind: str) -> dict[str, Any]:
        draw = self._draw
        self._num_asked += 1
        priority = draw.choice([0] * 6 + [1, 2, -1, draw.randrange(10**6)])
        common = {"max_tokens": draw.randint(1, 48), "priority": priority}
        common["ignore_eos"] = draw.random() < 0.5  # else the length is not known before
        changed: dict[str, dict[str, Any]] = {
            "stream": {"stream": True},
            "abort": {"stream": True, "max_tokens": 400, "ignore_eos": True},
            "sampled": {"temperature": 0.8, "seed": draw.randrange(2**31), "ignore_eos": False},
            "salted": {"cache_salt": f"tenant {draw.randrange(1000)}"},
            "hinted": {"ignore_eos": False, "vllm_xargs": {"expected_output_tokens": 20}},
            "long": {"max_tokens": 300, "ignore_eos": True},
            "bad": {"temperature": -1},
        }
        return completion(self._prompt(kind), **common | changed.get(kind, {}))

    def _prompt(self, kind: str) -> str:
        if kind == "alone":
            return " ".join(str(self._draw.randrange(10**6)) for _ in range(40))
        number = self._num_asked // 40 + self._draw.randrange(NUM_LIVE_PREFIXES)
        words = random.Random(number).choices(
            ["river", "stone", "letter", "garden", "winter"], k=150
        )
        return f"Document {number}: {' '.join(words)}. Question {self._draw.randrange(10**6)}?"

    async def _abort(self, body: dict[str, Any], num_lines: int) -> str:
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        async with self._http.stream(
            "POST", "/v1/completions", content=content, headers=headers
        ) as response:
            if num_lines:
                async for line in response.aiter_lines():
                    num_lines -= bool(line)
                    if num_lines <= 0:
                        break
        return "aborted"
