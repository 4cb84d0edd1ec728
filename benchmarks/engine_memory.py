# SPDX-License-Identifier: Apache-2.0
"""Peak memory of the engine core while a large batch comes in, stock and ours.

    python benchmarks/engine_memory.py [--requests 100000] [--tokens 2000] [--json FILE]

The real engine in a process of its own, as vLLM runs it, on a small model with random weights. Each arm has a process of its own, too;
it calls ``generate`` on the whole batch and is ended once the last request has been handed over and the core's memory has not
grown for a while: from then on requests only leave. Sixteen prompts in a row share half of their tokens. Peaks are Linux's (``VmHWM``), in
bytes; ``unfinished_then``: requests that had not ended when the last one was handed over,
``unfinished_at_end`` when the memory had settled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "scheduler"))

ARMS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "whole batch first": {"head_start_s": None},
    "batchllm": {},
}
DEGREE = 16
SETTLED_S = 10
"""Without growth; the core takes requests in while it works."""


def make_prompts(num_requests: int, num_tokens: int) -> list[dict[str, list[int]]]:
    """``DEGREE`` in a row share the first half."""
    rng = random.Random(0)
    prompts: list[dict[str, list[int]]] = []
    while len(prompts) < num_requests:
        shared = rng.choices(range(1_000), k=num_tokens // 2)
        for _ in range(min(DEGREE, num_requests - len(prompts))):
            own = rng.choices(range(1_000), k=num_tokens - len(shared))
            prompts.append({"prompt_token_ids": shared + own})
    return prompts


def peak_of(pid: int) -> int:
    """The most memory that the process ``pid`` has had, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} does not say its peak")


def settled_peak(pid: int) -> int:
    """The peak of ``pid`` once it has not grown for a while."""
    peak, since = 0, time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        if (found := peak_of(pid)) > peak:
            peak, since = found, time.monotonic()
        time.sleep(0.5)
    return peak


def run_arm(arm: str, num_requests: int, num_tokens: int) -> dict[str, Any]:
    """Peaks of one arm; in a process of its own, which is of no use afterwards."""
    import psutil
    from fake_engine import model_folder
    from vllm import SamplingParams

    options = ARMS[arm]
    if options is None:
        from vllm import LLM
    else:
        from vllm_batchllm import LLM  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        llm: Any = LLM(
            model_folder(Path(folder)),
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=num_tokens + 128,
            gpu_memory_utilization=0.2,
            **({"batchllm": options} if options else {}),
        )
    (core,) = [p for p in psutil.Process().children(recursive=True) if is_engine_core(p)]
    row = {"arm": arm, "core_idle": core.memory_info().rss}
    prompts = make_prompts(num_requests, num_tokens)
    handed_over = threading.Event()
    engine, num_added = llm.llm_engine, 0
    add_request = engine.add_request

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_added
        added = add_request(*args, **kwargs)
        num_added += 1
        if num_added == num_requests:
            row["unfinished_then"] = len(engine.output_processor.request_states)
            handed_over.set()
        return added

    engine.add_request = counted
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
    start_s = time.perf_counter()
    threading.Thread(
        target=llm.generate, args=(prompts, params), kwargs={"use_tqdm": False}, daemon=True
    ).start()
    handed_over.wait()
    row["handed_over_s"] = round(time.perf_counter() - start_s, 1)
    row |= {"core_peak": settled_peak(core.pid), "front_end_peak": peak_of(os.getpid())}
    row["unfinished_at_end"] = len(engine.output_processor.request_states)
    row["core_bytes_per_request"] = round((row["core_peak"] - row["core_idle"]) / num_requests)
    core.kill()
    return row


def is_engine_core(process: Any) -> bool:
    """Whether ``process`` is vLLM's engine core, which names itself."""
    return "EngineCore" in process.name() or any("EngineCore" in part for part in process.cmdline())


def main() -> None:
    """Run all arms, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=2_000)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("ROW " + json.dumps(run_arm(args.one, args.requests, args.tokens)), flush=True)
        os.killpg(os.getpgid(0), signal.SIGKILL)  # the call of `generate` never ends
    rows = []
    for arm in args.arms:
        command = [sys.executable, __file__, "--one", arm]
        command += ["--requests", str(args.requests), "--tokens", str(args.tokens)]
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        found = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not found:
            sys.exit(f"the arm {arm!r} ended without a figure")
        rows.append(json.loads(found[0]))
        print(json.dumps(rows[-1]), flush=True)
    if args.json is not None:
        content = {"requests": args.requests, "tokens": args.tokens, "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
