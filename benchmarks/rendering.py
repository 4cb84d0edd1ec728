# SPDX-License-Identifier: Apache-2.0
"""What slow rendering costs: the engine in its own process, prompts that take a while to render.

    python benchmarks/rendering.py --model DIR [--prompts 150] [--delay-ms 0 3 30] [--json FILE]

Stock vLLM, ours with the whole batch first (``head_start_s=null``), and ours. Prompts come grouped, sorted
or shuffled; every rendering takes ``--delay-ms`` longer (a sleep, as decoding an image elsewhere would). Seconds are of
the whole call; *saved* is the share of prompt tokens that were found in the cache, as the outputs say, and
*optimum* what any schedule with enough memory finds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

ARMS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "whole batch first": {"head_start_s": None},
    "ours": {},
}
DEGREE = 10
ORDERS = ("grouped", "sorted", "shuffled")


def make_prompts(number: int, order: str) -> list[list[int]]:
    """``DEGREE`` prompts over each shared prefix of 96 tokens, 16 of their own."""
    rng = random.Random(0)
    prompts = []
    for _ in range(-(-number // DEGREE)):
        shared = rng.choices(range(100, 9_000), k=96)
        prompts += [shared + rng.choices(range(100, 9_000), k=16) for _ in range(DEGREE)]
    prompts = prompts[:number]
    if order == "sorted":
        prompts.sort()
    if order == "shuffled":
        rng.shuffle(prompts)
    return prompts


def slowed(render: Callable[..., Any], delay_s: float) -> Callable[..., Any]:
    """``render``, which takes so much longer."""

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(delay_s)
        return render(*args, **kwargs)

    return slow


def run(
    llm: Any, kind: str, prompts: list[list[int]], delay_s: float, max_tokens: int
) -> dict[str, float]:
    """One call on an empty cache."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    name = "_preprocess_chat_one" if kind == "chat" else "_preprocess_cmpl_one"
    before = getattr(llm, name)
    setattr(llm, name, slowed(before, delay_s))
    llm.reset_prefix_cache()
    start_s = time.perf_counter()
    if kind == "chat":
        tokenizer = llm.get_tokenizer()
        chats = [[{"role": "user", "content": tokenizer.decode(p)}] for p in prompts]
        outputs = llm.chat(chats, params, use_tqdm=False)
    else:
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - start_s
    setattr(llm, name, before)
    total = sum(len(output.prompt_token_ids) for output in outputs)
    return {
        "seconds": round(seconds, 2),
        "saved": round(sum(output.num_cached_tokens for output in outputs) / total, 4),
        "optimum": round(_optimum([output.prompt_token_ids for output in outputs]), 4),
    }


def _optimum(prompts: list[list[int]]) -> float:
    from vllm_batchllm.prefix.best_saving import optimal_saved_tokens

    return optimal_saved_tokens(prompts, 32) / sum(map(len, prompts))


def engine(model: str, options: dict[str, Any] | None, kv_blocks: int) -> Any:
    """Stock's `LLM`, or ours with options."""
    sizes = {
        "model": model,
        "max_model_len": 512,
        "num_gpu_blocks_override": kv_blocks,
        "block_size": 32,
    }
    sizes |= {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "enforce_eager": True}
    if options is None:
        from vllm import LLM

        return LLM(**sizes)
    from vllm_batchllm import LLM as Ours

    return Ours(**sizes, batchllm=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[0, 3, 30])
    parser.add_argument("--kinds", nargs="+", default=["text", "chat"])
    parser.add_argument("--orders", nargs="+", default=list(ORDERS))
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--kv-blocks", type=int, default=64)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for arm in args.arms:
        options = ARMS[arm]
        llm = engine(args.model, options, args.kv_blocks)
        run(llm, "text", make_prompts(20, "grouped"), 0, 4)
        for kind in args.kinds:
            for delay_ms in args.delay_ms:
                for order in args.orders:
                    prompts = make_prompts(args.prompts, order)
                    found = run(llm, kind, prompts, delay_ms / 1e3, args.max_tokens)
                    row = {"arm": arm, "kind": kind, "delay_ms": delay_ms, "order": order, **found}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
        del llm
        gc.collect()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
