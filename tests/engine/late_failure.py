# SPDX-License-Identifier: Apache-2.0
"""Ask an engine in its own process for what its messages cannot carry; print the outcome as JSON.

python late_failure.py MODEL
"""

from __future__ import annotations

import json
import sys

from tiny_engines import ENGINE

TOO_LARGE_A_SEED = 2**65


def main(model: str) -> None:
    from vllm import SamplingParams

    from vllm_batchllm import LLM

    llm = LLM(model, **ENGINE)
    good = SamplingParams(temperature=0, max_tokens=3, detokenize=False)
    late = SamplingParams(temperature=1, seed=TOO_LARGE_A_SEED, max_tokens=3, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": [5, 6, 7, 8]}] * 2, [good, late], use_tqdm=False)
    told = {
        "in_its_own_process": hasattr(llm.llm_engine.engine_core, "call_utility"),
        "finish_reasons": [output.outputs[0].finish_reason for output in outputs],
        "error": type(outputs[1].error).__name__,
        "unfinished": llm.llm_engine.get_num_unfinished_requests(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
