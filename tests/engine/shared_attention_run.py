# SPDX-License-Identifier: Apache-2.0
"""Engines on one attention backend, in a process of their own; what came of it goes to a file.

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
    "portable": "vllm_batchllm.attention.portable.SharedTritonBackend",
}


def count_plans() -> dict[str, int]:
    """Steps that were planned, of them those with prefills beside, and KV tokens that were not read, from now on."""
    from vllm_batchllm.attention import planning_kernels, sharing

    found = {"planned": 0, "mixed": 0, "tokens_saved": 0, "builds": 0}
    make = sharing.GroupPlan.make

    def counting(self: Any, step: Any, *, shift: bool) -> Any:
        plan = make(self, step, shift=shift)
        found["builds"] += 1
        if plan is not None:
            found["planned"] += 1
            found["mixed"] += step.max_query_len > plan.shape.max_query_len
            found["tokens_saved"] += int(plan.counts[planning_kernels.NUM_TOKENS_SAVED.value])
        return plan

    sharing.GroupPlan.make = counting
    return found


def count_shared_steps() -> dict[str, int]:
    """The same of the CPU's backend."""
    from vllm_batchllm.attention import cpu

    found = {"planned": 0, "mixed": 0, "tokens_saved": 0, "builds": 0}
    build = cpu.SharedCPUMetadataBuilder.build

    def counting(self: Any, common_prefix_len: int, step: Any, fast_build: bool = False) -> Any:
        metadata = build(self, common_prefix_len, step, fast_build)
        found["builds"] += 1
        if (shared := metadata.shared_kv) is not None:
            found["planned"] += 1
            found["mixed"] += step.max_query_len > 1
            read = shared.shared.kv_tokens_read(shared.seq_lens, self.block_size)
            found["tokens_saved"] += int(shared.seq_lens.sum()) - read
        return metadata

    cpu.SharedCPUMetadataBuilder.build = counting
    return found


def small_tiles() -> None:
    """What the interpreter runs in seconds, and a rule that finds groups in short prompts."""
    from vllm_batchllm.attention import flash, portable
    from vllm_batchllm.attention.grouping import GroupingRule

    for module in (flash, portable):
        module.default_rule = lambda: GroupingRule(cost_tokens=8, min_tokens=32)


def make_a_mistake(which: str) -> None:
    """Leave the shared part out of every other row, or let each group end one token early."""
    from vllm_batchllm.attention import plan

    build = plan.SharedKVPlan.build

    def wrong(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if which == "node":
            self.node_of_row[::2] = -1
        else:
            self.items[:, 4] -= 1

    plan.SharedKVPlan.build = wrong


def count_preemptions(scheduler: Any) -> list[str]:
    """Ids of the requests that are preempted from now on."""
    found: list[str] = []
    preempt = scheduler._preempt_request

    def counting(request: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = counting
    return found


def abort_on_the_way(llm: Any, load: dict[str, Any]) -> None:
    """Start some prompts, and give each third of them up after a few steps."""
    from tiny_engines import greedy

    engine = llm.llm_engine
    prompts = sorted(load["prompts"])[:12]
    ids = [f"given-up-{n}" for n in range(len(prompts))]
    for name, prompt in zip(ids, prompts, strict=True):
        engine.add_request(name, {"prompt_token_ids": prompt}, greedy(6, ignore_eos=True))
    for step in range(1000):
        engine.step()
        if step == 3:
            engine.abort_request(ids[::3])
        if not engine.has_unfinished_requests():
            return
    raise AssertionError("requests are left")


def adapters(load: dict[str, Any]) -> dict[str, Any]:
    """Adapters of the prompts, in turns, as ``generate`` takes them."""
    from vllm.lora.request import LoRARequest

    known = [
        LoRARequest(f"adapter-{n}", n, path) for n, path in enumerate(load.get("adapters", ()), 1)
    ]
    if not known:
        return {}
    return {"lora_request": [known[n % len(known)] for n in range(len(load["prompts"]))]}


def outcome(llm: Any, load: dict[str, Any], plans: dict[str, int]) -> dict[str, Any]:
    from tiny_engines import generate, greedy, scheduler_of, tokens

    if load.get("abort"):
        abort_on_the_way(llm, load)
    before, preempted = dict(plans), count_preemptions(scheduler_of(llm))
    params = [greedy(n, ignore_eos=True) for n in load["max_tokens"]]
    outputs = generate(llm, load["prompts"], params, **adapters(load))
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    scheduler = scheduler_of(llm)
    return {
        "tokens": tokens(outputs),
        "plans": {name: plans[name] - before[name] for name in plans},
        "num_preemptions": len(preempted),
        "runner": type(worker.model_runner).__module__,
        "backend": type(worker.model_runner.attn_groups[0][0].get_metadata_builder()).__name__,
        "num_left": len(scheduler.requests) + len(scheduler.waiting) + len(scheduler.running),
    }


def main(model: str, load_file: Path, result: Path) -> None:
    import triton_on_cpu

    load = json.loads(load_file.read_text())
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
        triton_on_cpu.run_triton_in_its_interpreter()
        triton_on_cpu.allow_async_scheduling()
    plans: dict[str, int] = {}
    if load["backend"] == "cpu":
        plans = count_shared_steps()
    else:
        import flash_on_cpu

        flash_on_cpu.install(BACKENDS[load["backend"]])
        if load["backend"] != "flash":
            small_tiles()
            plans = count_plans()
        if "mutant" in load:
            make_a_mistake(load["mutant"])
    from tiny_engines import LLM, StockLLM, check_clean, started

    found = {}
    for arm, cls in (("stock", StockLLM), ("ours", LLM)):
        if arm in load.get("arms", ["stock", "ours"]):
            options = {"batchllm": load["options"]} if arm == "ours" and "options" in load else {}
            with started(cls, model, **load["engine"], **options) as llm:
                found[arm] = outcome(llm, load, plans)
                if arm == "ours":
                    check_clean(llm)
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
