# SPDX-License-Identifier: Apache-2.0
"""A loop of rollouts as trainers write it, on ``vllm.LLM``, in a process of its own.

python rollout_run.py MODEL LOAD.json RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def rollouts(llm: Any, prompts: list[list[int]], num_steps: int) -> list[Any]:
    """Tokens of every sample, step by step; the cache is emptied where the weights would change."""
    from vllm import SamplingParams

    found = []
    for step in range(num_steps):
        params = SamplingParams(n=3, seed=step, max_tokens=6, detokenize=False, ignore_eos=True)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(inputs, params, use_tqdm=False)
        found.append([[list(sample.token_ids) for sample in one.outputs] for one in outputs])
        assert llm.reset_prefix_cache()
    return found


def main(model: str, load_file: Path, result: Path) -> None:
    from tiny_engines import ENGINE
    from vllm import LLM

    load = json.loads(load_file.read_text())
    llm = LLM(model, **ENGINE)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    found = {
        "scheduler": type(scheduler).__name__,
        "tokens": rollouts(llm, load["prompts"], load["num_steps"]),
    }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
