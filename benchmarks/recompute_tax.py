# SPDX-License-Identifier: Apache-2.0
"""How much is computed twice where memory is far too small: the setting of vllm#54644, simulated.

    python benchmarks/recompute_tax.py [--json FILE]

300 requests that share nothing, about 560 tokens each, half of them output, on 1,600, 800 and 400 KV blocks of 16. Published
there for stock, a 0.5B model on a device: 32.2, 57.9 and 78.8 % of all tokens computed are computed again.
The lengths are ours (the thread gives their sum only). Real schedulers, every figure a counter:
tokens computed again as a share of all, and steps.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from frontier import Rule, Run, run

from vllm_batchllm.workloads.batch import Batch

NUM_REQUESTS = 300
KV_BLOCKS = (1_600, 800, 400)
RULES = (
    Rule("stock", None),
    Rule("stock, watermark 0.02", None, 0.02),
    Rule("stock, watermark 0.05", None, 0.05),
    Rule("ours"),
)


def make_batch(lengths_known: bool) -> Batch:
    """Prompts of 64 to 448 tokens, outputs of 100 to 512."""
    rng = random.Random(12345)
    prompts = [rng.choices(range(10, 30_000), k=rng.randint(64, 448)) for _ in range(NUM_REQUESTS)]
    outputs = [rng.randint(100, 512) for _ in range(NUM_REQUESTS)]
    return Batch(
        name="recompute-tax", prompts=prompts, output_lens=outputs, lengths_known=lengths_known
    )


def rows_of(num_blocks: int, lengths_known: bool) -> list[dict[str, Any]]:
    """One row for each rule."""
    batch = make_batch(lengths_known)
    least = Run(batch.name, 0, "unlimited")
    run(batch, Rule("unlimited", None), 200_000, least)
    rows = []
    for rule in RULES:
        found = Run(batch.name, 0, rule.name)
        run(replace(batch), rule, num_blocks, found)
        share = 1 - least.computed / found.computed
        rows.append(
            {
                "kv_blocks": num_blocks,
                "lengths": "known" if lengths_known else "unknown",
                "rule": rule.name,
                "recomputed_ratio": round(share, 4),
                "steps": found.steps,
                "preemptions": found.preemptions,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for lengths_known in (True, False):
        for num_blocks in KV_BLOCKS:
            for row in rows_of(num_blocks, lengths_known):
                rows.append(row)
                print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
