# SPDX-License-Identifier: Apache-2.0
"""Two data-parallel ranks behind one ``vllm serve``: what each of them computes, by vLLM's own metrics."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from live_server import SERVED_NAME, LiveServer, serving, small_model
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

OPTIONS = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "1024")
OPTIONS += ("--num-gpu-blocks-override", "256", "--data-parallel-size", "2")
OFF = ("--additional-config", json.dumps({"batchllm": {"rank_affinity": False}}))
DOCUMENTS, MEMBERS, SHARED, OWN = 4, 8, 640, 16
ONCE = DOCUMENTS * SHARED + DOCUMENTS * MEMBERS * OWN
"""Prompt tokens to compute if every document is computed at one rank."""


def prompts() -> list[list[int]]:
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(100, 40_000) for _ in range(count)]

    documents = [tokens(SHARED) for _ in range(DOCUMENTS)]
    asked = [document + tokens(OWN) for document in documents for _ in range(MEMBERS)]
    draw.shuffle(asked)
    return asked


def ask_all(server: LiveServer) -> None:
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")

    async def ask(prompt: list[int]) -> None:
        answer = await client.completions.create(
            model=SERVED_NAME, prompt=prompt, max_tokens=8, temperature=0
        )
        assert answer.choices

    async def ask_together() -> None:
        await asyncio.gather(*map(ask, prompts()))

    asyncio.run(ask_together())


def by_engine(server: LiveServer, name: str) -> dict[str, float]:
    """A counter of vLLM's, by its label ``engine``."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name == f"vllm:{name}_total":
                engine = sample.labels["engine"]
                found[engine] = found.get(engine, 0.0) + sample.value
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("scheduler", "words", "least", "most"),
    [
        ("batchllm", ("--api-server-count", "1"), ONCE, ONCE),
        ("batchllm", (), ONCE, ONCE + DOCUMENTS * SHARED),
        ("batchllm", OFF, ONCE + SHARED, ONCE + DOCUMENTS * SHARED),
        ("stock", (), ONCE + SHARED, ONCE + DOCUMENTS * SHARED),
    ],
    ids=["one API server", "two API servers", "off", "stock"],
)
def test_what_two_ranks_compute(
    tmp_path: Path, scheduler: str, words: tuple[str, ...], least: int, most: int
) -> None:
    model = small_model(tmp_path / "model")
    with serving(model, tmp_path, *words, scheduler=scheduler, options=OPTIONS) as server:
        ask_all(server)
        asked = by_engine(server, "prefix_cache_queries")
        hits = by_engine(server, "prefix_cache_hits")
        assert sum(asked.values()) == DOCUMENTS * MEMBERS * (SHARED + OWN)
        assert least <= sum(asked.values()) - sum(hits.values()) <= most
        shares = by_engine(server, "request_success")
        assert min(shares.values()) >= MEMBERS // 2, f"load is uneven: {shares}"
