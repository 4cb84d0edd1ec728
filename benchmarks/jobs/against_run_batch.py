# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm run` against `vllm run-batch`, stock and with our scheduler: time to the first answer, makespan, prompt tokens saved.

    python benchmarks/jobs/against_run_batch.py --out benchmarks/results/jobs

Workloads of the suite, divided by 8, as chats of SmolLM2 (a word for each token), and CPython's help topics with six questions each.
Requests come shuffled; KV memory is what the workload says. Each arm is a command of its own, from its start to its end, one after
the other. Writes `against_run_batch.json` and `.md`. Nothing else should run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from kills import MODEL, command, whole_lines

from vllm_batchllm.workloads.batch import kv_blocks_for
from vllm_batchllm.workloads.catalog import make_workload

BLOCK_SIZE = 32
TEMPLATE_TOKENS = 48
DOCUMENTS = "documents"
WORKLOADS = ("micro-2000-200-d16", "industry", DOCUMENTS)
OPTIONS = [
    *("--model", str(MODEL), "--served-model-name", "smol", "--dtype", "float32"),
    *("--enforce-eager", "--gpu-memory-utilization", "0.2", "--block-size", str(BLOCK_SIZE)),
    *("--max-num-batched-tokens", "2048", "--max-num-seqs", "256"),
    "--enable-prompt-tokens-details",
]
ARMS = {
    "run-batch, stock": ["vllm", "run-batch"],
    "run-batch, batchllm": ["vllm", "run-batch", "--scheduler", "batchllm"],
    "vllm-batchllm run": ["vllm-batchllm", "run"],
}


def words() -> list[str]:
    """Words that are one token each behind a space."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = []
    for token in range(1000, 12_000):
        text = tokenizer.decode([token])
        if text.startswith(" ") and text[1:].isalpha() and tokenizer.encode(text) == [token]:
            found.append(text)
    return found


def chats_of(name: str, num_requests: int) -> tuple[list[tuple[str, int]], int, int]:
    """Texts with output lengths; KV blocks; the longest sequence in tokens."""
    if name == DOCUMENTS:
        return documents()
    batch = make_workload(name, scale=8, num_requests=num_requests, seed=0, vocab_size=8000)
    known = words()
    texts = ["".join(known[token % len(known)] for token in prompt) for prompt in batch.prompts]
    longest = max(len(p) + n for p, n in zip(batch.prompts, batch.output_lens, strict=True))
    blocks = kv_blocks_for(batch, BLOCK_SIZE)
    return list(zip(texts, batch.output_lens, strict=True)), blocks, longest + TEMPLATE_TOKENS


def documents() -> tuple[list[tuple[str, int]], int, int]:
    """Real texts, about half of which fit into the cache."""
    from pydoc_data.topics import topics

    sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
    from main_job import QUESTIONS

    chosen = sorted((text[:4000] for text in topics.values()), key=len)[-24:]
    texts = [(f"{text}\n\n{question}", 16) for text in chosen for question in QUESTIONS]
    random.Random(0).shuffle(texts)
    return texts, 24 * 1000 // 2 // BLOCK_SIZE, 2048


def write_input(path: Path, chats: list[tuple[str, int]]) -> None:
    with path.open("w") as stream:
        for number, (text, num_output) in enumerate(chats):
            message = {"role": "user", "content": text}
            body = {"model": "smol", "temperature": 0, "messages": [message]}
            body |= {"max_tokens": num_output, "ignore_eos": True}
            line = {"custom_id": f"r{number}", "method": "POST"}
            stream.write(json.dumps({**line, "url": "/v1/chat/completions", "body": body}) + "\n")


def measure(arm: str, path: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """One command, from its start to its end."""
    name, *rest = ARMS[arm]
    files = [path, output] if name == "vllm-batchllm" else ["-i", path, "-o", output]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    began, first_s = time.monotonic(), None
    process = subprocess.Popen(
        command(name, *rest, *files, *options), env=environment, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if first_s is None and whole_lines(output):
            first_s = time.monotonic() - began
        time.sleep(0.02)
    makespan_s = time.monotonic() - began
    assert process.returncode == 0, f"{arm} ended with {process.returncode}"
    found = [json.loads(line) for line in whole_lines(output)]
    usages = [line["response"]["body"]["usage"] for line in found]
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    cached = sum((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0) for usage in usages)
    choices = {line["custom_id"]: line["response"]["body"]["choices"] for line in found}
    return {
        "first_answer_s": makespan_s if first_s is None else first_s,
        "makespan_s": makespan_s,
        "prompt_tokens": prompt,
        "saved_ratio": cached / prompt,
        "choices": choices,
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    num_requests: Annotated[int, typer.Option(help="Of the suite's workloads.")] = 400,
    workload: Annotated[list[str] | None, typer.Option(help="Some of them.")] = None,
) -> None:
    """Measure all arms on all workloads."""
    results: dict[str, dict[str, Any]] = {}
    for name in workload or WORKLOADS:
        chats, kv_blocks, longest = chats_of(name, num_requests)
        sizes = ["--num-gpu-blocks-override", str(kv_blocks), "--max-model-len", str(longest)]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "in.jsonl"
            write_input(path, chats)
            measured = {}
            for number, arm in enumerate(ARMS):
                output = Path(folder) / f"out{number}.jsonl"
                measured[arm] = measure(arm, path, output, OPTIONS + sizes)
        expected = measured["run-batch, stock"]["choices"]
        for arm, found in measured.items():
            own = found.pop("choices")
            found["equal"] = sum(own[key] == expected[key] for key in expected) / len(expected)
            print(name, arm, found, flush=True)
        results[name] = {"requests": len(chats), "kv_blocks": kv_blocks, "arms": measured}
    out.mkdir(parents=True, exist_ok=True)
    (out / "against_run_batch.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "against_run_batch.md").write_text(table(results))
    print(table(results))


def table(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        "# A job and vLLM's run-batch",
        "",
        "`python benchmarks/jobs/against_run_batch.py --out benchmarks/results/jobs`; whole commands, start of the engine included.",
        "",
        "| workload | requests | arm | first answer, s | makespan, s | prompt tokens saved | answers equal to stock |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, result in results.items():
        for arm, found in result["arms"].items():
            cells = [name, str(result["requests"]), arm]
            cells += [f"{found['first_answer_s']:.1f}", f"{found['makespan_s']:.1f}"]
            cells += [f"{found['saved_ratio']:.1%}", f"{found['equal']:.1%}"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    typer.run(main)
