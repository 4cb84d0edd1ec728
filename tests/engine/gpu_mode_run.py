# SPDX-License-Identifier: Apache-2.0
"""A pair of engines as GPUs run them, in a process of their own; what came of it goes to a file.

TRITON_INTERPRET=1 python gpu_mode_run.py MODEL LOAD.json RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import triton_on_cpu


def outcome(llm: Any, load: dict[str, Any]) -> dict[str, Any]:
    from tiny_engines import generate, greedy, num_computed, scheduler_of, tokens

    outputs = generate(llm, load["prompts"], greedy(load["max_tokens"], ignore_eos=True))
    scheduler = scheduler_of(llm)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return {
        "tokens": tokens(outputs),
        "num_computed": num_computed(outputs),
        "values": values(llm, load["scored"], load["starts"]),
        "scheduler": type(scheduler).__name__,
        "runners": [each.__module__ for each in type(worker.model_runner).__mro__],
        "num_left": len(scheduler.requests) + len(scheduler.waiting) + len(scheduler.running),
    }


def values(llm: Any, prompts: list[list[int]], starts: list[int]) -> list[list[Any]]:
    """Log-probabilities of prompts from starts on, the prefix cache warm; stock gives all of them."""
    from vllm import SamplingParams

    ours = hasattr(llm, "report")
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=1,
            detokenize=False,
            extra_args={"prompt_logprobs_start": start} if ours else None,
        )
        for start in starts
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    num_with_hits = sum(bool(output.num_cached_tokens) for output in outputs)
    assert num_with_hits > len(outputs) / 2 if ours else not num_with_hits
    return [
        [
            each and sorted((token, one.rank, round(one.logprob, 4)) for token, one in each.items())
            for each in output.prompt_logprobs
        ]
        for output in outputs
    ]


def main(model: str, load_file: Path, result: Path) -> None:
    triton_on_cpu.run_triton_in_its_interpreter()
    triton_on_cpu.allow_async_scheduling()
    from tiny_engines import check_clean, pair

    load = json.loads(load_file.read_text())
    with pair(model, **load["engine"]) as engines:
        found = {"stock": outcome(engines.stock, load), "ours": outcome(engines.ours, load)}
        check_clean(engines.ours)
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
