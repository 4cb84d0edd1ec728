# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of prompts from starts on, by an engine of ours in a process of its own.

python scored_run.py MODEL LOAD.json RESULT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(model: str, load_file: Path, result: Path) -> None:
    from tiny_engines import ENGINE
    from vllm import SamplingParams

    from vllm_batchllm import LLM

    load = json.loads(load_file.read_text())
    llm = LLM(model, **ENGINE | load["engine"])
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=load["max_tokens"],
            prompt_logprobs=1,
            detokenize=False,
            ignore_eos=True,
            extra_args={"prompt_logprobs_start": start},
        )
        for start in load["starts"]
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in load["prompts"]]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    found = {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "num_cached": sum(output.num_cached_tokens for output in outputs),
        "values": [
            [
                each and {str(t): one.logprob for t, one in each.items()}
                for each in o.prompt_logprobs
            ]
            for o in outputs
        ],
    }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
