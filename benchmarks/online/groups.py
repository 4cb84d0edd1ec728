# SPDX-License-Identifier: Apache-2.0
"""Prefix groups that trickle in: whether holding their first members pays, simulated.

    python benchmarks/online/groups.py --out benchmarks/results/online [--trace FILE]

Documents that are asked 8 questions each, spread over a window, on Llama-3.1-8B and one H100-80GB: with memory for few of them,
and with ample memory. With `--trace`, a Mooncake trace as well, by its own timestamps stretched to several rates. Writes
`groups.json` and `groups.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from vllm_batchllm.admission.hold_value import HoldValue
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.arrivals import poisson_times_s, rescaled_s
from vllm_batchllm.simulate.online import run_online
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.sources import InputOptions, load_batch

DEVICE = "H100-80GB"
QUESTIONS = 8
WINDOWS_S, RATES = (0.2, 1.0, 4.0), (4.0, 16.0, 32.0)
MEMORIES = {"small": 1200, "ample": None}
"""KV blocks of 16 tokens: some six documents, and what the device has."""
HOLDS_S = (0.5, 2.0)
TRACE_RATES = (0.25, 0.5, 1.0)
TRACE_MEMORIES = {"small": 16384, "ample": None}
WEIGHTS = {"hold": 1.0, "light": 0.1, "always": 1.0}
"""As our rule says, the same where a wait weighs a tenth (`wait_weight`), and whoever begins something."""
ARMS = (
    Arm("greedy", "batchllm"),
    *(
        Arm(
            f"{kind} {hold:g} s",
            "batchllm",
            options={"release": "groups", "max_hold_s": hold, "wait_weight": weight},
        )
        for kind, weight in WEIGHTS.items()
        for hold in HOLDS_S
    ),
)


@dataclass(frozen=True)
class Case:
    """A stream of requests on an engine."""

    load: str
    window_s: float | None
    memory: str
    rate: float


@dataclass(frozen=True)
class Row:
    """One arm on one case; tokens are of prompts."""

    case: Case
    arm: str
    computed_tokens: int
    saved_ratio: float
    best_ratio: float
    ttft_p50_s: float
    ttft_p99_s: float
    num_held: int
    num_groups: int
    hold_s: float
    requests_per_s: float
    end_to_end_s: float


def documents(
    num_documents: int, rate: float, window_s: float, seed: int
) -> tuple[Batch, list[float]]:
    """Questions about documents: the first when the document comes, the others within the window; when each arrives."""
    draw = np.random.default_rng(seed)
    starts = poisson_times_s(num_documents, rate / QUESTIONS, seed)
    prompts: list[list[int]] = []
    outputs, times = [], []
    for at_s in starts:
        document = draw.integers(0, 100_000, draw.integers(2000, 4001)).tolist()
        later = [0.0, *np.sort(draw.uniform(0, window_s, QUESTIONS - 1)).tolist()]
        for offset_s in later:
            question = draw.integers(0, 100_000, draw.integers(20, 81)).tolist()
            prompts.append(document + question)
            outputs.append(int(draw.integers(4, 17)))
            times.append(at_s + offset_s)
    return Batch("documents", prompts, outputs), times


@contextmanager
def always_held() -> Iterator[None]:
    """Whether it pays is not asked inside."""
    with (
        patch.object(HoldValue, "pays", lambda *args: True),
        patch.object(HoldValue, "_is_turn_of_control", lambda self: False),
    ):
        yield


def run(case: Case, batch: Batch, times_s: Sequence[float], blocks: int | None) -> Iterator[Row]:
    """All arms."""
    setup = make_setup(batch, SetupOptions(device=DEVICE, kv_blocks=blocks))
    best = optimal_saved_tokens(batch.prompts, setup.sizes.block_size)
    for arm in ARMS:
        with always_held() if arm.name.startswith("always") else nullcontext():
            done = run_online(batch, times_s, arm, setup.sizes, setup.costs, optimal_saved=best)
        ttft, counters, metrics = done.latencies.ttft, done.counters, done.metrics
        yield Row(
            case, arm.name, metrics.computed_prompt_tokens, metrics.saved_ratio, metrics.optimal_saved_ratio,
            ttft.p50_s, ttft.p99_s, counters["num_held_ever"], counters["num_releases"], counters["hold_s"],
            batch.num_requests / metrics.makespan_s, done.latencies.mean_end_to_end_s,
        )  # fmt: skip


def synthetic(num_documents: int, seed: int) -> Iterator[Row]:
    """Documents, by window, memory and rate."""
    for window_s in WINDOWS_S:
        for rate in RATES:
            batch, times_s = documents(num_documents, rate, window_s, seed)
            for memory, blocks in MEMORIES.items():
                case = Case("documents", window_s, memory, rate)
                yield from run(case, batch, times_s, blocks)


def traced(path: Path, num_requests: int) -> Iterator[Row]:
    """The first requests of a trace, by memory and rate."""
    batch = load_batch(str(path), InputOptions(num_requests=num_requests))
    assert batch.arrivals_s is not None, f"{path} has no timestamps"
    for rate in TRACE_RATES:
        times_s = rescaled_s(batch.name, batch.arrivals_s, rate)
        for memory, blocks in TRACE_MEMORIES.items():
            yield from run(Case(path.name, None, memory, rate), batch, times_s, blocks)


def report(rows: Sequence[Row], command: str) -> str:
    """As Markdown."""
    lines = [
        "# Prefix groups that trickle in, simulated\n",
        f"`{command}`\n",
        (
            f"Llama-3.1-8B on one {DEVICE}. Documents of 2,000 to 4,000 tokens, {QUESTIONS} questions each within the window, 4 to 16 "
            f"tokens of output. Memory small: {MEMORIES['small']:,} KV blocks of 16 tokens ({TRACE_MEMORIES['small']:,} for a trace). "
            "Computed: prompt tokens, over greedy. Saved: share of prompt tokens, and what unlimited memory would save. "
            "Groups: released ones. Hold: as our rule says; light: with wait_weight 0.1; always: everybody who begins something, to see what there is to gain. "
            "p99 within: not above that of greedy by more than the longest hold.\n"
        ),
        "| load | window, s | memory | rate, 1/s | arm | computed | saved (of) | TTFT p50, s | p99, s | p99 within | held | groups | requests/s |",
        "| --- | ---: | --- | ---: | --- |" + " ---: |" * 8,
    ]
    for case in dict.fromkeys(row.case for row in rows):
        own = [row for row in rows if row.case == case]
        for row in own:
            lines.append(_line(row, own[0]))
    return "\n".join(lines) + "\n"


def _line(row: Row, greedy: Row) -> str:
    case = row.case
    hold = 0.0 if row is greedy else float(row.arm.split()[1])
    is_within = row.ttft_p99_s <= greedy.ttft_p99_s + hold
    cells: list[Any] = [
        case.load, "" if case.window_s is None else f"{case.window_s:g}", case.memory, f"{case.rate:g}", row.arm,
        f"{row.computed_tokens / greedy.computed_tokens:.3f}", f"{row.saved_ratio:.1%} ({row.best_ratio:.1%})",
        f"{row.ttft_p50_s:.3f}", f"{row.ttft_p99_s:.3f}", "yes" if is_within else "NO",
        f"{row.num_held}", f"{row.num_groups}", f"{row.requests_per_s:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--documents", type=int, default=100, help="of a stream")
    parser.add_argument("--trace", type=Path, help="a Mooncake trace")
    parser.add_argument("--trace-requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    words = [Path(word).name if word == str(chosen.trace) else word for word in sys.argv[1:]]
    command = " ".join(["python benchmarks/online/groups.py", *words])
    rows = list(synthetic(chosen.documents, chosen.seed))
    save(chosen.out, rows, command)
    if chosen.trace is not None:
        for row in traced(chosen.trace, chosen.trace_requests):
            rows.append(row)
            save(chosen.out, rows, command)
    print((chosen.out / "groups.md").read_text())


def save(out: Path, rows: Sequence[Row], command: str) -> None:
    """What is there so far."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "groups.json").write_text(json.dumps([asdict(row) for row in rows]) + "\n")
    (out / "groups.md").write_text(report(rows, command))


if __name__ == "__main__":
    main()
