# SPDX-License-Identifier: Apache-2.0
"""Run an engine in processes of its own and print what came of it, as JSON.

python separate_run.py MODEL PROMPTS.json ENGINE_ARGUMENTS.json
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

NUM_TOKENS = 24


async def answer(engine: Any, number: int, prompt: list[int]) -> list[int]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, detokenize=False)
    final = None
    async for output in engine.generate({"prompt_token_ids": prompt}, params, str(number)):
        final = output
    assert final is not None and final.finished
    return list(final.outputs[0].token_ids)


def figures() -> dict[str, dict[str, float]]:
    """Our counters and those of drafts, by name and engine."""
    from prometheus_client import REGISTRY

    found: dict[str, dict[str, float]] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if re.search("batchllm.*_total|spec_decode.*_total", sample.name):
                by_engine = found.setdefault(sample.name, {})
                engine = sample.labels.get("engine", "")
                by_engine[engine] = by_engine.get(engine, 0.0) + sample.value
    return found


async def main(model: str, prompts: Path, arguments: Path, result: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    given: dict[str, Any] = json.loads(arguments.read_text())
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **given))
    try:
        numbered = enumerate(json.loads(prompts.read_text()))
        answers = await asyncio.gather(*(answer(engine, *each) for each in numbered))
        await asyncio.sleep(1)  # the counters' last ride
        result.write_text(json.dumps({"tokens": answers, "figures": figures()}))
    finally:
        engine.shutdown()


if __name__ == "__main__":
    model, *files = sys.argv[1:]
    asyncio.run(main(model, *map(Path, files)))
