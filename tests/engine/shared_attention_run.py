# SPDX-License-Identifier: Apache-2.0
"""A pair of engines on one attention backend, in a process of its own; what came of it goes to a file.

TRITON_INTERPRET=1 python shared_attention_run.py MODEL LOAD.json RESULT.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

BACKENDS = {
    "flash": "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend",
    "shared": "vllm_batchllm.attention.flash.SharedFlashBackend",
}


def count_plans() -> dict[str, int]:
    """Steps that were planned, of them those with prefills beside, and KV tokens that were not read, from now on."""
    from vllm_batchllm.attention import flash, planning_kernels

    found = {"planned": 0, "mixed": 0, "tokens_saved": 0, "builds": 0}
    build = flash.SharedFlashMetadataBuilder.build

    def counting(self: Any, common_prefix_len: int, step: Any, fast_build: bool = False) -> Any:
        metadata = build(self, common_prefix_len, step, fast_build)
        found["builds"] += 1
        if metadata.shared_kv is not None:
            found["planned"] += 1
            found["mixed"] += step.max_query_len > self.plan.shape.max_query_len
            found["tokens_saved"] += int(self.plan.counts[planning_kernels.NUM_TOKENS_SAVED.value])
        return metadata

    flash.SharedFlashMetadataBuilder.build = counting
    return found


def small_tiles() -> None:
    """What the interpreter runs in seconds, and a rule that finds groups in short prompts."""
    from vllm_batchllm.attention import flash
    from vllm_batchllm.attention.grouping import GroupingRule

    flash.GroupingRule = lambda: GroupingRule(cost_tokens=8, min_tokens=32)


def outcome(llm: Any, load: dict[str, Any], plans: dict[str, int]) -> dict[str, Any]:
    from tiny_engines import generate, greedy, scheduler_of, tokens

    before = dict(plans)
    params = [greedy(n, ignore_eos=True) for n in load["max_tokens"]]
    outputs = generate(llm, load["prompts"], params)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    scheduler = scheduler_of(llm)
    return {
        "tokens": tokens(outputs),
        "plans": {name: plans[name] - before[name] for name in plans},
        "preemptions": sum(
            output.metrics.num_preemptions if output.metrics else 0 for output in outputs
        )
        if load.get("metrics")
        else None,
        "runner": type(worker.model_runner).__module__,
        "num_left": len(scheduler.requests) + len(scheduler.waiting) + len(scheduler.running),
    }


def main(model: str, load_file: Path, result: Path) -> None:
    import triton_on_cpu

    load = json.loads(load_file.read_text())
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
        triton_on_cpu.run_triton_in_its_interpreter()
        triton_on_cpu.allow_async_scheduling()
    plans: dict[str, int] = {}
    if load["backend"] != "cpu":
        import flash_on_cpu

        flash_on_cpu.install(BACKENDS[load["backend"]])
        if load["backend"] == "shared":
            small_tiles()
            plans = count_plans()
    from tiny_engines import check_clean, pair

    with pair(model, **load["engine"]) as engines:
        found = {name: outcome(getattr(engines, name), load, plans) for name in ("stock", "ours")}
        check_clean(engines.ours)
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
