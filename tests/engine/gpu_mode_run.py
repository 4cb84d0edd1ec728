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
        "scheduler": type(scheduler).__name__,
        "runners": [each.__module__ for each in type(worker.model_runner).__mro__],
        "num_left": len(scheduler.requests) + len(scheduler.waiting) + len(scheduler.running),
    }


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
