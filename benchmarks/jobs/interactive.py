# SPDX-License-Identifier: Apache-2.0
"""Interactive requests beside a batch on one server: time to the first token, and what is left of the batch's speed.

    python benchmarks/jobs/interactive.py --out benchmarks/results/jobs

A real `vllm serve` of SmolLM2 on the CPU; a short streamed request each second, alone, beside the batch as ordinary requests of an
asynchronous client, and beside the same batch by the Batch API. Writes `interactive.json` and `.md`. Nothing else should run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from openai import AsyncOpenAI

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))
from kills import WORDS
from live_server import MODEL, SERVED_NAME, LiveServer, serving

SIZES = [
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "1024"),
    *(
        "--max-num-seqs",
        "64",
        "--max-num-batched-tokens",
        "512",
        "--num-gpu-blocks-override",
        "300",
    ),
]
EVERY_S = 1.0
AT_ONCE = 256
URL = "/v1/chat/completions"
Batch = Callable[[AsyncOpenAI, list[dict[str, Any]]], Awaitable[None]]


def bodies(num_lines: int) -> list[dict[str, Any]]:
    """Documents of some 100 tokens with questions, interleaved."""
    import random

    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS, k=100)) for _ in range(num_lines // 16 + 1)]
    made = []
    for number in range(num_lines):
        text = f"{documents[number % len(documents)]}. Question {number}: which word?"
        messages = [{"role": "user", "content": text}]
        made.append(
            {"model": SERVED_NAME, "messages": messages, "max_tokens": 12, "temperature": 0}
        )
    return made


async def as_traffic(client: AsyncOpenAI, lines: list[dict[str, Any]]) -> None:
    """The batch as any client would send it."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(body: dict[str, Any]) -> None:
        async with room:
            await client.chat.completions.create(**body)

    await asyncio.gather(*map(one, lines))


async def by_batch_api(client: AsyncOpenAI, lines: list[dict[str, Any]]) -> None:
    """The same batch, uploaded and waited for."""
    records = (
        {"custom_id": f"r{number}", "method": "POST", "url": URL, "body": body}
        for number, body in enumerate(lines)
    )
    packed = "".join(json.dumps(record) + "\n" for record in records).encode()
    file = await client.files.create(file=("in.jsonl", packed), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h"
    )
    while (found := await client.batches.retrieve(batch.id)).status not in ("completed", "failed"):
        await asyncio.sleep(0.25)
    assert found.status == "completed" and found.request_counts.completed == len(lines), found


async def first_token_s(client: AsyncOpenAI, number: int) -> float:
    text = f"Say something about the number {number}."
    began = time.monotonic()
    stream = await client.chat.completions.create(
        model=SERVED_NAME,
        messages=[{"role": "user", "content": text}],
        max_tokens=8,
        temperature=0,
        stream=True,
    )
    first = 0.0
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.monotonic() - began
    return first


async def measure(
    server: LiveServer, batch: Batch | None, lines: list[dict[str, Any]], least: int
) -> dict[str, float]:
    """Interactive requests until the batch is done, at least ``least`` of them."""
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=900)
    await first_token_s(client, 0)
    began, seconds = time.monotonic(), float("nan")
    running = asyncio.create_task(batch(client, lines)) if batch else None
    asked: list[asyncio.Task[float]] = []
    while (running and not running.done()) or (running is None and len(asked) < least):
        asked.append(asyncio.create_task(first_token_s(client, len(asked) + 1)))
        if running is None:
            await asyncio.sleep(EVERY_S)
        else:
            await asyncio.wait([running], timeout=EVERY_S)
    if running:
        await running
        seconds = time.monotonic() - began
    found = sorted(await asyncio.gather(*asked))
    await client.close()
    return {
        "interactive": len(found),
        "ttft_p50_s": statistics.median(found),
        "ttft_p99_s": found[min(int(len(found) * 0.99), len(found) - 1)],
        "batch_s": seconds,
        "lines_per_s": len(lines) / seconds,
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    num_lines: Annotated[int, typer.Option(help="Lines of the batch.")] = 400,
) -> None:
    """Measure all three."""
    lines = bodies(num_lines)
    results: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for kind, scheduler in (("stock", "stock"), ("ours", "batchllm")):
            place = folder / kind
            place.mkdir()
            with serving(MODEL, place, scheduler=scheduler, options=SIZES) as server:
                found = asyncio.run(measure(server, as_traffic, lines, 0))
                results[f"batch as ordinary traffic, {scheduler} scheduler"] = found
                print(kind, found, flush=True)
        place = folder / "api"
        place.mkdir()
        words = ("--enable-batch-api", "--batch-dir", str(folder / "batches"))
        with serving(MODEL, place, *words, options=SIZES) as server:
            results["alone"] = asyncio.run(measure(server, None, lines, 30))
            results["batch by the Batch API"] = asyncio.run(measure(server, by_batch_api, lines, 0))
    out.mkdir(parents=True, exist_ok=True)
    (out / "interactive.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "interactive.md").write_text(table(results, num_lines))
    print(table(results, num_lines))


def table(results: dict[str, dict[str, float]], num_lines: int) -> str:
    rows = [
        "# Interactive requests beside a batch",
        "",
        f"`python benchmarks/jobs/interactive.py --out benchmarks/results/jobs`; {num_lines} lines.",
        "",
        "| | interactive requests | TTFT p50, s | p99, s | batch, s | lines/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in results.items():
        cells = [name, f"{found['interactive']:.0f}"]
        cells += [f"{found['ttft_p50_s']:.3f}", f"{found['ttft_p99_s']:.3f}"]
        has_batch = found["batch_s"] == found["batch_s"]
        cells += (
            [f"{found['batch_s']:.1f}", f"{found['lines_per_s']:.2f}"] if has_batch else ["", ""]
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    typer.run(main)
