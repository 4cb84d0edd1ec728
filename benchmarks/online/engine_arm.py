# SPDX-License-Identifier: Apache-2.0
"""One arm on the real engine of this machine, in a process of its own: what `real_engine.py` starts.

    python benchmarks/online/engine_arm.py SPEC.json RESULT.json

The small random model; requests are added when the wall clock says so, and the engine is stepped in this process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}

import numpy as np

LONGEST = 4096
SEQS = 32


def make_llm(spec: dict[str, Any]) -> Any:
    """vLLM's `LLM`, with our scheduler where the spec has options for it."""
    from vllm import LLM

    from vllm_batchllm.bench.random_model import random_model

    ours: dict[str, Any] = {}
    if spec["options"] is not None:
        ours = {
            "scheduler_cls": "vllm_batchllm.create_scheduler",
            "additional_config": {"batchllm": spec["options"]},
        }
    return LLM(
        str(random_model()),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        block_size=32,
        max_model_len=LONGEST,
        max_num_seqs=min(SEQS, spec["size"]),
        max_num_batched_tokens=spec["size"],
        gpu_memory_utilization=0.2,
        scheduling_policy=spec["policy"],
        seed=0,
        **ours,
    )


class Session:
    """Requests served over time, and what was seen of them."""

    def __init__(self, llm: Any) -> None:
        self.engine = llm.llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.widest = 0
        schedule = self.scheduler.schedule

        def look(*args: Any) -> Any:
            output = schedule(*args)
            self.widest = max(output.num_scheduled_tokens.values(), default=0)
            return output

        self.scheduler.schedule = look

    def serve(self, spec: dict[str, Any], seed: int) -> dict[str, Any]:
        """Times of all tokens, by request, and of steps that only decoded."""
        from vllm import SamplingParams

        draw = np.random.default_rng(seed)
        requests = sorted(spec["requests"])  # (seconds, prompt, output, priority)
        times: list[list[float]] = [[] for _ in requests]
        decode_s: list[float] = []
        added, began = 0, time.monotonic()
        while added < len(requests) or self.engine.has_unfinished_requests():
            now_s = time.monotonic() - began
            while added < len(requests) and requests[added][0] <= now_s:
                _, prompt, output, priority = requests[added]
                tokens = draw.integers(3, 4000, prompt).tolist()
                params = SamplingParams(
                    temperature=0, max_tokens=output, ignore_eos=True, detokenize=False
                )
                name, text = f"{seed}-{added}", {"prompt_token_ids": tokens}
                self.engine.add_request(name, text, params, priority=priority)
                added += 1
            if not self.engine.has_unfinished_requests():
                time.sleep(max(requests[added][0] - now_s, 0))
                continue
            step_s = time.monotonic()
            outputs = self.engine.step()
            end_s = time.monotonic()
            if self.widest == 1:
                decode_s.append(end_s - step_s)
            for one in outputs:
                place = int(one.request_id.split("-")[1])
                num = len(one.outputs[0].token_ids) - len(times[place])
                times[place] += [end_s - began] * num
        arrivals_s = [request[0] for request in requests]
        return {"times_s": times, "arrivals_s": arrivals_s, "decode_s": decode_s}


def main(spec_path: Path, result_path: Path) -> None:
    """Warm up on a part of the requests, then serve all of them."""
    spec = json.loads(spec_path.read_text())
    session = Session(make_llm(spec))
    warm = [[0.0, *request[1:]] for request in spec["requests"][: spec["num_warm"]]]
    session.serve(spec | {"requests": warm}, 1)
    gc.collect()
    gc.freeze()  # as vLLM does in a process of the engine's own
    found = session.serve(spec, 2)
    snapshot = getattr(session.scheduler, "batchllm_snapshot", dict)()
    names = ("num_steps_over_target", "num_steps_beyond_target", "num_paused_prefills")
    found["counters"] = {name: snapshot[name] for name in names if name in snapshot}
    result_path.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
