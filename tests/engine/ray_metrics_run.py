# SPDX-License-Identifier: Apache-2.0
"""An engine as Ray Serve LLM and Ray Data LLM build it, with vLLM's metrics in Ray's; in a process of its own.

python ray_metrics_run.py MODEL LOAD.json RESULT.json
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

PATIENCE_S = 60
"""Ray's agent gets figures every few seconds."""


def let_ray_serve_be_imported() -> None:
    """vLLM's wrappers import it, whose gRPC proxy wants a package that is not among ours; nothing of it is used here."""
    if importlib.util.find_spec("grpc_reflection") is None:
        package, version = ModuleType("grpc_reflection"), ModuleType("grpc_reflection.v1alpha")
        vars(package)["v1alpha"] = version
        vars(version)["reflection"] = ModuleType("reflection")
        sys.modules |= {module.__name__: module for module in (package, version)}


async def served(model: str, prompts: list[list[int]]) -> None:
    """Answer ``prompts`` by an engine whose metrics are Ray's."""
    from tiny_engines import ENGINE
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER

    arguments = ENGINE | {"disable_log_stats": False, "scheduler_cls": BATCHLLM_SCHEDULER}
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model, **arguments), stat_loggers=[RayPrometheusStatLogger]
    )
    params = SamplingParams(temperature=0, max_tokens=6, detokenize=False, ignore_eos=True)

    async def one(number: int, prompt: list[int]) -> None:
        async for _ in engine.generate({"prompt_token_ids": prompt}, params, str(number)):
            pass

    await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    engine.shutdown()


def shown(port: int, name: str) -> list[str]:
    """Lines of Ray's exporter once one of them has ``name`` in it; those that there are after a minute."""
    lines: list[str] = []
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and not any(name in line for line in lines):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        time.sleep(1)
    return [line for line in lines if "vllm" in line and not line.startswith("#")]


def main(model: str, load_file: Path, result: Path) -> None:
    let_ray_serve_be_imported()
    import ray

    load: Any = json.loads(load_file.read_text())
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    asyncio.run(served(model, load["prompts"]))
    lines = shown(ray.nodes()[0]["MetricsExportPort"], "batchllm_prompt_tokens")
    result.write_text(json.dumps(lines))
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
