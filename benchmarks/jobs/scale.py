# SPDX-License-Identifier: Apache-2.0
"""Large jobs on an engine that answers at once: seconds and memory of the driver, by the number of lines.

    python benchmarks/jobs/scale.py --out benchmarks/results/jobs

Each size runs in a process of its own, which has imported vLLM as the command does. Beside it `vllm run-batch`, with handlers that
answer at once, too. Writes `scale.json` and `scale.md`. Nothing else should run.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

SIZES = ((10_000, 1000), (100_000, 1000), (1_000_000, 1000), (100_000, 10_000))
RUN_BATCH = (100_000, 1000)
URL = "/v1/chat/completions"
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    ],
}


def write_input(path: Path, num_lines: int, line_bytes: int) -> None:
    """Chats in groups of 16 that share three quarters of their text, shuffled."""
    draw = random.Random(0)
    order = list(range(num_lines))
    draw.shuffle(order)
    with path.open("w") as stream:
        for number in order:
            shared = random.Random(number // 16).randbytes(line_bytes * 3 // 8).hex()
            own = random.Random(-1 - number).randbytes((line_bytes - 250) // 8).hex()
            message = {"role": "user", "content": f"{shared} {number} {own}"}
            body = {"model": "m", "temperature": 0, "messages": [message]}
            line = {"custom_id": f"request-{number}", "method": "POST", "url": URL, "body": body}
            stream.write(json.dumps(line) + "\n")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def import_as_the_command_does() -> None:
    import vllm_batchllm.cli
    import vllm_batchllm.jobs.engine  # noqa: F401


def run_job(path: Path) -> dict[str, float]:
    """Open and run a job with a server that answers at once."""
    import_as_the_command_does()
    from vllm_batchllm.input.line import JobLine
    from vllm_batchllm.jobs.answer import Answer
    from vllm_batchllm.jobs.feed import Window
    from vllm_batchllm.jobs.session import JobSession, SessionSettings

    class AtOnce:
        def __init__(self) -> None:
            self.gone = asyncio.Event()

        async def serve(self, line: JobLine) -> Answer:
            await asyncio.sleep(0)
            usage = {"prompt_tokens": len(line.body["messages"][0]["content"]) // 4}
            return Answer(200, {**ANSWER, "usage": {**usage, "completion_tokens": 1}})

    imported_mb, began = peak_mb(), time.monotonic()
    session = JobSession.open(path, path.with_name("out.jsonl"), SessionSettings({}))
    planned = time.monotonic()
    window = Window(2048, 4096, 1_000_000)
    asyncio.run(session.run(AtOnce(), window, asyncio.Event()))
    fed = time.monotonic()
    total = session.counts.completed
    session.close()
    again = JobSession.open(path, path.with_name("out.jsonl"), SessionSettings({}))
    reopened = time.monotonic()
    assert again.counts.completed == total
    again.close()
    return {
        "lines": total,
        "plan_s": planned - began,
        "feed_s": fed - planned,
        "reopen_s": reopened - fed,
        "imported_mb": imported_mb,
        "peak_mb": peak_mb(),
    }


def run_theirs(path: Path) -> dict[str, float]:
    """vLLM's run-batch with a handler that answers at once."""
    from argparse import Namespace

    import_as_the_command_does()
    from vllm.entrypoints.launchers import run_batch
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

    async def answer(request: Any) -> ChatCompletionResponse:
        await asyncio.sleep(0)
        return ChatCompletionResponse(**ANSWER, usage={"prompt_tokens": 250})

    async def registry(**_: Any) -> dict[str, Any]:
        chat = {"url_matcher": lambda url: url == URL, "handler_getter": lambda: answer}
        return {"completions": {**chat, "wrapper_fn": None}}

    run_batch.build_endpoint_registry = registry
    output = str(path.with_name("theirs.jsonl"))
    args = Namespace(input_file=str(path), output_file=output, output_tmp_dir=None)
    imported_mb, began = peak_mb(), time.monotonic()
    asyncio.run(run_batch.run_batch(None, args))
    seconds = time.monotonic() - began
    return {"feed_s": seconds, "imported_mb": imported_mb, "peak_mb": peak_mb()}


def in_a_process(what: str, path: Path) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, __file__, "--one", what, "--path", str(path), "--out", "."],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
    path: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure all sizes."""
    if one and path:
        print(json.dumps(run_job(path) if one == "job" else run_theirs(path)))
        return
    results: dict[str, dict[str, float]] = {}
    for num_lines, line_bytes in SIZES:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "in.jsonl"
            write_input(file, num_lines, line_bytes)
            name = f"{num_lines:,} x {line_bytes:,} B"
            results[name] = in_a_process("job", file)
            print(name, results[name], flush=True)
            if (num_lines, line_bytes) == RUN_BATCH:
                results[f"{name}, vllm run-batch"] = in_a_process("theirs", file)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "scale.md").write_text(table(results))
    print(table(results))


def exponent(results: dict[str, dict[str, float]], figure: str) -> float:
    """Of the growth from 100,000 to a million lines."""
    few, many = results["100,000 x 1,000 B"], results["1,000,000 x 1,000 B"]
    return math.log10(many[figure] / few[figure])


def table(results: dict[str, dict[str, float]]) -> str:
    rows = [
        "# Large jobs on an engine that answers at once",
        "",
        "`python benchmarks/jobs/scale.py --out benchmarks/results/jobs`",
        "",
        "| job | plan, s | feed and write, s | read again, s | peak memory above imports, MB | imports, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in results.items():
        seconds = [
            f"{found[key]:.1f}" if key in found else "" for key in ("plan_s", "feed_s", "reopen_s")
        ]
        memory = [f"{found['peak_mb'] - found['imported_mb']:,.0f}", f"{found['imported_mb']:,.0f}"]
        rows.append(f"| {' | '.join([name, *seconds, *memory])} |")
    grown = ", ".join(f"{key[:-2]} {exponent(results, key):.2f}" for key in ("plan_s", "feed_s"))
    return (
        "\n".join([*rows, "", f"Growth from 100,000 to 1,000,000 lines, exponents: {grown}."])
        + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
