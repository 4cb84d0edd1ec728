# SPDX-License-Identifier: Apache-2.0
"""Shared attention in a whole engine, on and off: throughput, agreement of greedy tokens, and the record that ``auto`` reads.

    python benchmarks/gpu/engine.py MODEL --out result.json --keep-record
    python benchmarks/gpu/engine.py --dry            small random model on the CPU

Prefixes of 512, 2,000 and 16,000 tokens, 4 and 16 requests behind each, and prompts that share nothing. Both engines have
our scheduler and differ in nothing but ``shared_attention``; each is a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ARMS = ("off", "on")


@dataclass(frozen=True)
class Load:
    """Groups of prompts; ``degree`` 1 shares nothing."""

    prefix: int
    degree: int
    num_prompts: int
    own: int = 50
    output: int = 200

    @property
    def name(self) -> str:
        return f"{self.prefix}x{self.degree}"

    def prompts(self, vocabulary: int, seed: int = 0) -> list[list[int]]:
        rng = random.Random(seed)

        def tokens(count: int) -> list[int]:
            return [rng.randrange(10, vocabulary) for _ in range(count)]

        found = []
        while len(found) < self.num_prompts:
            head = tokens(self.prefix)
            found += [head + tokens(self.own) for _ in range(self.degree)]
        return found[: self.num_prompts]


LOADS = (
    Load(512, 4, 1024), Load(512, 16, 1024), Load(2000, 4, 1024), Load(2000, 16, 1024),
    Load(16000, 4, 128), Load(16000, 16, 128), Load(2000, 1, 256),
)  # fmt: skip
DRY_LOADS = (Load(96, 4, 12, own=7, output=6), Load(96, 1, 10, own=7, output=6))


def run_arm(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All loads on one engine."""
    from vllm import SamplingParams

    from vllm_batchllm import LLM

    engine: dict[str, Any] = {
        "seed": 0,
        "skip_tokenizer_init": True,
        "batchllm": {"shared_attention": args.arm},
    }
    if args.dry:
        engine |= {"dtype": "float32", "enforce_eager": True, "block_size": 32, "num_gpu_blocks_override": 400,
                   "max_model_len": 512, "max_num_seqs": 16}  # fmt: skip
    engine |= json.loads(args.engine)
    llm = LLM(args.model, **engine)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    found = []
    for load in DRY_LOADS if args.dry else LOADS:
        prompts = [{"prompt_token_ids": p} for p in load.prompts(vocabulary)]
        params = SamplingParams(
            temperature=0, max_tokens=load.output, ignore_eos=True, detokenize=False, logprobs=0
        )
        seconds, outputs = [], []
        for _ in range(args.rounds + 1):  # the first warms up
            llm.reset_prefix_cache()
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds.append(time.perf_counter() - start)
        found.append(
            {
                "load": asdict(load),
                "seconds": seconds[1:],
                "tokens": [list(output.outputs[0].token_ids) for output in outputs],
                "logprobs": [
                    [next(iter(step.values())).logprob for step in output.outputs[0].logprobs]
                    for output in outputs
                ],
            }
        )
    return found


def agreement(off: dict[str, Any], on: dict[str, Any]) -> tuple[float, float]:
    """Share of equal tokens before the first that differs, and the largest difference of log-probabilities until there."""
    same, total, largest = 0, 0, 0.0
    for a, b, x, y in zip(
        off["tokens"], on["tokens"], off["logprobs"], on["logprobs"], strict=True
    ):
        first = next(
            (n for n, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a)
        )
        same, total = same + first, total + len(a)
        largest = max([largest, *(abs(p - q) for p, q in zip(x[:first], y[:first], strict=True))])
    return same / total, largest


def show(
    off: list[dict[str, Any]], on: list[dict[str, Any]]
) -> tuple[str, dict[str, float], float]:
    """A table, the gains by load, and that of nothing shared."""
    lines = [
        "| prefix x degree | off, s | on, s | off / on | equal tokens | largest difference of log-probabilities |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    gains, nothing = {}, float("nan")
    for a, b in zip(off, on, strict=True):
        load = Load(**a["load"])
        gain = median(a["seconds"]) / median(b["seconds"])
        equal, largest = agreement(a, b)
        lines.append(
            f"| {load.name} | {median(a['seconds']):.2f} | {median(b['seconds']):.2f} | {gain:.3f} | {equal:.1%} | {largest:.1e} |"
        )
        if load.degree == 1:
            nothing = gain
        else:
            gains[load.name] = gain
    return "\n".join(lines), gains, nothing


def keep_record(args: argparse.Namespace, gains: dict[str, float], nothing: float) -> Path:
    """The record of this device, model shape and vLLM, where ``auto`` finds it."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_batchllm.attention.device import record_key
    from vllm_batchllm.attention.speed_records import SpeedRecord, write_record

    given = {key: value for key, value in json.loads(args.engine).items() if key != "batchllm"}
    key = record_key(EngineArgs(args.model, **given).create_engine_config())
    measured = f"{datetime.date.today()}, python benchmarks/gpu/engine.py {args.model}"
    return write_record(SpeedRecord(*key, gains=gains, nothing_shared=nothing, measured=measured))


def dry_model(folder: Path) -> str:
    """A small random model."""
    from vllm_batchllm.bench.random_model import RandomModelSpec, random_model

    spec = RandomModelSpec(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=64,
                           vocab_size=512, max_position_embeddings=512)  # fmt: skip
    return str(random_model(folder, spec))


def main() -> int:
    """Run both arms, show, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dry", action="store_true", help="a small model on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="{}", help="engine arguments, JSON")
    parser.add_argument("--out", type=Path, default=Path("shared_attention.json"))
    parser.add_argument(
        "--keep-record", action="store_true", help="write the record that 'auto' reads"
    )
    parser.add_argument("--arm", choices=ARMS, help="this one only, in this process")
    args = parser.parse_args()
    if args.model is None:
        if not args.dry:
            parser.error("name a model, or give --dry")
        args.model = dry_model(args.out.parent)
    if args.arm:
        args.out.write_text(json.dumps(run_arm(args)))
        return 0
    found = {}
    for arm in ARMS:
        file = args.out.with_suffix(f".{arm}.json")
        given = [
            "--rounds",
            str(args.rounds),
            "--engine",
            args.engine,
            *(["--dry"] if args.dry else []),
        ]
        subprocess.run(
            [sys.executable, __file__, args.model, *given, "--arm", arm, "--out", str(file)],
            check=True,
        )
        found[arm] = json.loads(file.read_text())
    text, gains, nothing = show(found["off"], found["on"])
    print(text)
    args.out.write_text(
        json.dumps({"gains": gains, "nothing_shared": nothing, "table": text}, indent=1)
    )
    if args.keep_record:
        print(f"record: {keep_record(args, gains, nothing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
