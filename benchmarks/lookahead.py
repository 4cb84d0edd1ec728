# SPDX-License-Identifier: Apache-2.0
"""What is saved when only part of a batch is in sight: a trace, fed a few hundred at a time.

    python benchmarks/lookahead.py --trace TRACE.jsonl.gz --waiting 64 --waiting 256 --waiting all

The trace is one in the Mooncake format; its blocks of 512 tokens become blocks of ``--block-size``,
and its outputs shrink alike. The queue is filled up before every step. Schedulers are real and run
on a fake KV config. No time is measured, so every figure is exact and repeats.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "scheduler"))

import typer
from fake_engine import model_folder
from lookahead_arms import Workload, arms_for, run
from tqdm import tqdm

from vllm_batchllm.input.plain_file import plain_file
from vllm_batchllm.input.trace import (
    num_distinct_blocks,
    output_of,
    prompt_of,
    read_trace,
)
from vllm_batchllm.ordering.policies import ORDERS
from vllm_batchllm.prefix.best_saving import optimal_saving

BAD_INPUT = 2
HEADER = (
    "running",
    "waiting",
    "order, pool",
    "saved at admission",
    "saved net",
    "preemptions",
    "steps",
    "needed blocks given up",
    "longest overtaken",
)

TraceOption = Annotated[
    Path,
    typer.Option(help="Trace in the Mooncake format, .jsonl or .jsonl.gz.", show_default=False),
]
RequestsOption = Annotated[int, typer.Option(min=1, help="How many of its first requests.")]
WaitingOption = Annotated[
    list[str], typer.Option(help="At most so many wait at a time, or `all`; repeatable.")
]
RunningOption = Annotated[
    list[int], typer.Option(min=1, help="At most so many run at a time; repeatable.")
]
OrderOption = Annotated[list[str], typer.Option(help=f"{', '.join(ORDERS)}; repeatable.")]
KvShareOption = Annotated[
    float, typer.Option(min=0.0, help="KV cache as a share of the blocks of all distinct prompts.")
]
BatchedOption = Annotated[int, typer.Option(min=1, help="Tokens per step.")]
BlockSizeOption = Annotated[int, typer.Option(min=2, help="Tokens per KV block.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the figures into a file, too.")
]


def lookahead(
    trace: TraceOption,
    requests: RequestsOption = 1500,
    waiting: WaitingOption = ["256"],  # noqa: B006
    max_num_seqs: RunningOption = [1, 16],  # noqa: B006
    order: OrderOption = ["dfs"],  # noqa: B006
    kv_share: KvShareOption = 0.06,
    max_num_batched_tokens: BatchedOption = 512,
    block_size: BlockSizeOption = 32,
    json_file: JsonOption = None,
) -> None:
    """Saved prompt tokens by scheduler, with a limited number of requests in sight."""
    limits = [_waiting_limit(value) for value in waiting]
    unknown = [name for name in order if name not in ORDERS]
    if unknown:
        _stop(f"--order {unknown[0]!r} is unknown; known: {', '.join(ORDERS)}")
    work = _workload(trace, requests, block_size, kv_share, max_num_batched_tokens)
    result = {
        "trace": trace.name,
        "num_requests": len(work.prompts),
        "block_size": block_size,
        "num_blocks": work.num_blocks,
        "max_num_batched_tokens": max_num_batched_tokens,
        "ceiling_share": optimal_saving(work.prompts, block_size).saved_ratio,
        "runs": _run_all(work, order, limits, max_num_seqs),
    }
    _print_table(result)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


def _workload(
    trace: Path, limit: int, block_size: int, kv_share: float, max_num_batched_tokens: int
) -> Workload:
    """The trace, scaled. Stops the command if it cannot be read or does not fit."""
    try:
        with plain_file(str(trace)) as path:
            traced = read_trace(path, limit, name=str(trace))
    except (OSError, ValueError) as error:
        _stop(str(error))
    if not traced:
        _stop(f"{trace} holds no request")
    work = Workload(
        prompts=[prompt_of(request, block_size) for request in traced],
        outputs=[output_of(request, block_size) for request in traced],
        block_size=block_size,
        num_blocks=int(num_distinct_blocks(traced) * kv_share),
        max_num_batched_tokens=max_num_batched_tokens,
    )
    if work.num_blocks < work.num_blocks_needed:
        _stop(
            f"--kv-share {kv_share} makes {work.num_blocks} blocks, but the longest request "
            f"needs {work.num_blocks_needed}; raise it"
        )
    return work


def _run_all(
    work: Workload, orders: list[str], limits: list[int | None], running: list[int]
) -> list[dict[str, Any]]:
    """One record for every run; a line of progress for each on standard error."""
    todo = [(r, w, arm) for r in running for w in limits for arm in arms_for(orders)]
    records = []
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder))
        for max_num_seqs, max_waiting, arm in tqdm(todo, unit="run"):
            outcome = run(arm, model, work, max_num_seqs, max_waiting)
            records.append(
                {
                    "max_num_seqs": max_num_seqs,
                    "max_waiting": max_waiting,
                    "arm": arm.name,
                    **asdict(outcome),
                }
            )
    return records


def _print_table(result: dict[str, Any]) -> None:
    print(
        f"{result['trace']}: {result['num_requests']} requests, {result['num_blocks']} KV blocks, "
        f"at most {result['ceiling_share']:.1%} of the prompt tokens can be saved\n"
    )
    print(f"| {' | '.join(HEADER)} |")
    print(f"|{' ---: |' * 2} --- |{' ---: |' * (len(HEADER) - 3)}")
    for record in result["runs"]:
        evicted = record["num_needed_evicted"]
        cells = (
            record["max_num_seqs"],
            record["max_waiting"] or "all",
            record["arm"],
            f"{record['saved_share']:.1%}",
            f"{record['net_saved_share']:.1%}",
            record["num_preemptions"],
            f"{record['num_steps']:,}",
            "" if evicted is None else f"{evicted:,}",
            f"{record['longest_overtaken']:,}",
        )
        print(f"| {' | '.join(map(str, cells))} |")


def _waiting_limit(value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdecimal() or int(value) < 1:
        _stop(f"--waiting must be an integer from 1 or `all`, not {value!r}")
    return int(value)


def _stop(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    raise typer.Exit(BAD_INPUT)


if __name__ == "__main__":
    typer.run(lookahead)
