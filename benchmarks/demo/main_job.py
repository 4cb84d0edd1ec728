# SPDX-License-Identifier: Apache-2.0
"""The main job: real documents x questions through ``vllm_batchllm.LLM``, measured against vLLM.

    python benchmarks/demo/main_job.py

Asks six questions about each of 24 of CPython's help topics, shuffled, of SmolLM2-135M-Instruct
in float32, with a KV cache that holds about half of the documents. Prints some answers and the
report, then runs the same prompts through stock vLLM (as they come, and sorted) and ours in
alternation. Writes answers.jsonl, report.json and ab.png.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from rich.console import Console

from vllm_batchllm.bench.engine import (
    BATCHLLM,
    SORTED,
    STOCK,
    TUNED,
    EngineSpec,
    arm_kwargs,
    engine_kwargs,
    prepare_environment,
)
from vllm_batchllm.bench.pace import Progress
from vllm_batchllm.bench.plots import plot_results
from vllm_batchllm.bench.report import result_to_dict
from vllm_batchllm.bench.runner import run_ab
from vllm_batchllm.bench.tables import match_text, ratio_text
from vllm_batchllm.measure.metrics import ABResult
from vllm_batchllm.workloads.batch import Batch, kv_blocks_for

sys.path.insert(0, str(Path(__file__).parent))
from fetch_model import verify_model

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
QUESTIONS = (
    "What is this text about, in one sentence?",
    "Which Python keyword or symbol does it explain?",
    "Does it contain an example? Answer yes or no.",
    "Name one error or exception it mentions.",
    "Who should read it: beginners or experts?",
    "Give it a title of at most five words.",
)
NUM_OUTPUT_TOKENS = 16
PRESSURE = 2.0
console = Console(width=100, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Task:
    """One question about one help topic."""

    topic: str
    question: str

    def messages(self, length: int) -> list[dict[str, str]]:
        """The chat for it, with the first ``length`` characters of the topic."""
        text = topics[self.topic][:length]
        return [{"role": "user", "content": f"{text}\n\nQuestion: {self.question}"}]


def make_tasks(num_documents: int, length: int) -> list[Task]:
    """Every question about ``num_documents`` topics of full length, shuffled."""
    names = [name for name in sorted(topics) if len(topics[name]) >= length][:num_documents]
    if len(names) < num_documents:
        raise SystemExit(f"only {len(names)} help topics have {length} characters")
    tasks = [Task(name, question) for name in names for question in QUESTIONS]
    random.Random(0).shuffle(tasks)
    return tasks


def tokenized(tasks: list[Task], length: int) -> Batch:
    """The tasks as prompts of token ids, to size the cache by."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = [
        tokenizer.apply_chat_template(
            task.messages(length), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for task in tasks
    ]
    return Batch(
        name="help-topics",
        prompts=prompts,
        output_lens=[NUM_OUTPUT_TOKENS] * len(prompts),
        pressure=PRESSURE,
        description=f"{len(tasks) // len(QUESTIONS)} help topics x {len(QUESTIONS)} questions",
    )


def answer(llm: Any, tasks: list[Task], length: int, out: Path) -> None:
    """Ask everything through our LLM; print some answers and the report, and write both."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT_TOKENS * 2)
    outputs = llm.chat([task.messages(length) for task in tasks], params)
    with (out / "answers.jsonl").open("w") as lines:
        for task, output in zip(tasks, outputs, strict=True):
            row = {"topic": task.topic, "question": task.question}
            row["answer"] = output.outputs[0].text.strip()
            lines.write(json.dumps(row) + "\n")
    for task, output in list(zip(tasks, outputs, strict=True))[:6]:
        console.print(f"[bold]{task.topic}[/bold]: {task.question}")
        console.print("  " + output.outputs[0].text.strip().replace("\n", " "), markup=False)
    console.print(str(llm.report()), markup=False, highlight=False)


def show(result: ABResult) -> None:
    """The A/B in a few lines."""
    console.print(f"\n[bold]A/B[/bold], {result.workload['description']}, paired medians:")
    for ratio in result.ratios():
        console.print(f"  batchllm is {ratio_text(ratio)} times as fast as {ratio.slower}")
    for arm in result.arms:
        medians = result.medians(arm)
        console.print(
            f"  {arm:9} {medians['makespan_s']:6.1f} s, saved {medians['saved_ratio']:.1%} "
            f"of {result.workload['prompt_tokens']:,} prompt tokens"
        )
    console.print(f"  outputs equal to stock's: {match_text(result)}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=24, help="help topics (default 24)")
    parser.add_argument("--length", type=int, default=1000, help="characters of each topic")
    parser.add_argument("--rounds", type=int, default=2, help="paired rounds of the A/B")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "demo")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start_s = time.perf_counter()
    verify_model(MODEL)
    args.out.mkdir(parents=True, exist_ok=True)
    on_cpu = prepare_environment()
    from vllm import LLM as StockLLM

    from vllm_batchllm import LLM

    tasks = make_tasks(args.documents, args.length)
    batch = tokenized(tasks, args.length)
    spec = EngineSpec(
        model=str(MODEL),
        kv_blocks=kv_blocks_for(batch, 32),
        max_model_len=1024,
        skip_tokenizer_init=False,
    )
    kwargs = engine_kwargs(spec, on_cpu=on_cpu)
    llm = LLM(**kwargs)
    answer(llm, tasks, args.length, args.out)
    report = llm.report().to_dict()
    engines = {STOCK: StockLLM(**kwargs), SORTED: StockLLM(**kwargs), BATCHLLM: llm}
    for arm in TUNED:
        engines[arm] = StockLLM(**arm_kwargs(spec, arm, on_cpu=on_cpu))

    def tell(progress: Progress) -> None:
        if progress.run is not None:
            console.print(f"  {progress.stage}: {progress.run.makespan_s:.1f} s", style="dim")

    result = run_ab(spec, batch, rounds=args.rounds, llms=engines, on_progress=tell, quick=True)
    show(result)
    plot_results([result], args.out / "ab.png")
    (args.out / "report.json").write_text(
        json.dumps({"report": report, "ab": result_to_dict(result)}, indent=1)
    )
    elapsed_s = time.perf_counter() - start_s
    console.print(
        f"written to {args.out} after {elapsed_s:.0f} s: answers.jsonl report.json ab.png"
    )


if __name__ == "__main__":
    main()
