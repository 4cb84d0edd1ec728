# SPDX-License-Identifier: Apache-2.0
"""How far the time of a whole file is from what a sample of its prefix groups says, with the real schedulers.

    python benchmarks/sample_error.py --requests 50000 --out benchmarks/results/plan

Files are made (`SHAPES`), simulated whole and by samples of several sizes, each of several seeds, by stock vLLM in file order,
sorted, and ours. The time of a sample is extrapolated as `simulate FILE --num-requests K` does. Nothing here is timed: other
work may run beside.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.run import SimulatedRun, run_arm
from vllm_batchllm.simulate.sample_time import WholeTime, whole_time
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.simulate.suite import describe
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.sources import InputOptions, load_batch

ARMS = ("stock", "sorted", "batchllm")


@dataclass(frozen=True, slots=True)
class Shape:
    """prefix, rest, output: tokens, drawn evenly. largest: requests of a group, 1 to so many. is_shuffled: the file's order."""

    prefix: tuple[int, int]
    rest: tuple[int, int]
    output: tuple[int, int]
    largest: int
    is_shuffled: bool


SHAPES = {
    "documents, shuffled": Shape((500, 2500), (20, 200), (50, 150), 300, True),
    "documents, in order": Shape((500, 2500), (20, 200), (50, 150), 300, False),
    "few large groups": Shape((1000, 3000), (50, 400), (20, 60), 4000, True),
    "nothing shared": Shape((0, 0), (300, 1500), (50, 300), 1, True),
}


def write(path: Path, shape: Shape, num: int) -> None:
    """Lines of token ids."""
    draw = np.random.default_rng(0)
    lines: list[str] = []
    while len(lines) < num:
        prefix = draw.integers(3, 30_000, int(draw.integers(shape.prefix[0], shape.prefix[1] + 1)))
        for _ in range(min(int(draw.integers(1, shape.largest + 1)), num - len(lines))):
            rest = draw.integers(3, 30_000, int(draw.integers(shape.rest[0], shape.rest[1] + 1)))
            output = int(draw.integers(shape.output[0], shape.output[1] + 1))
            tokens = [*prefix.tolist(), *rest.tolist()]
            lines.append(json.dumps({"prompt": tokens, "max_tokens": output}) + "\n")
    if shape.is_shuffled:
        draw.shuffle(lines)
    path.write_text("".join(lines))


@dataclass(frozen=True, slots=True)
class Row:
    """One simulation. error_ratio: extrapolated over true time, less 1; 0 of the whole. stated_ratio: the error that
    the command states beside it."""

    shape: str
    arm: str
    num_requests: int
    seed: int
    makespan_s: float
    whole_s: float
    saved_ratio: float
    error_ratio: float
    stated_ratio: float


def simulated(batch: Batch) -> Iterator[tuple[str, SimulatedRun]]:
    """`batch` by every arm."""
    setup = make_setup(batch, SetupOptions())
    for name in ARMS:
        yield name, run_arm(batch, find_arm(name), setup.sizes, setup.costs, 0)


def measured(name: str, path: Path, num: int, sizes: list[int], seeds: int) -> list[Row]:
    """The whole, and all samples."""
    rows, truth = [], {}
    for size, seed in [(num, 0), *((size, seed) for size in sizes for seed in range(seeds))]:
        batch = load_batch(str(path), InputOptions(num_requests=size, seed=seed))
        for arm, run in simulated(batch):
            found = whole_time(run, describe(batch)) or WholeTime(run.metrics.makespan_s, 0.0)
            found_s = found.seconds
            truth.setdefault(arm, found_s)
            saved, error = run.metrics.saved_ratio, found_s / truth[arm] - 1
            figures = (run.metrics.makespan_s, found_s, saved, error, found.error_ratio)
            rows.append(Row(name, arm, size, seed, *figures))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def report(rows: list[Row], num: int, command: str) -> str:
    """A table: the largest error of the seeds."""
    sizes = sorted({row.num_requests for row in rows if row.num_requests != num})
    lines = [
        f"# Time of {num:,} requests by a sample of their prefix groups\n",
        f"`{command}`\n",
        "Llama-3.1-8B on one A100-80GB, simulated. Error: extrapolated over simulated time of the whole, less 1; "
        + "the largest of all seeds, and in brackets the one that the command states. Saved: share of prompt tokens found in the cache.\n",
        "| file | arm | whole | " + " | ".join(f"error, {size:,}" for size in sizes) + " | saved, whole | "
        + " | ".join(f"{size:,}" for size in sizes) + " |",
        "| --- | --- | " + " | ".join(["---:"] * (2 * len(sizes) + 2)) + " |",
    ]  # fmt: skip
    for shape, arm in dict.fromkeys((row.shape, row.arm) for row in rows):
        own = [row for row in rows if (row.shape, row.arm) == (shape, arm)]
        whole = next(row for row in own if row.num_requests == num)
        errors, saved = [], []
        for size in sizes:
            found = [row for row in own if row.num_requests == size]
            worst = max(found, key=lambda row: abs(row.error_ratio))
            errors.append(f"{worst.error_ratio:+.1%} (±{worst.stated_ratio:.0%})")
            saved.append(f"{np.mean([row.saved_ratio for row in found]):.1%}")
        cells = [shape, arm, f"{whole.makespan_s:,.0f} s", *errors, f"{whole.saved_ratio:.1%}", *saved]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="Folder for sample_error.json and .md.")],
    requests: Annotated[int, typer.Option(min=100)] = 50_000,
    size: Annotated[list[int] | None, typer.Option(help="Of a sample, several times.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    shape: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
) -> None:
    """Make the files, simulate, report."""
    rows: list[Row] = []
    sizes = size or [1_000, 3_000, 10_000]
    command = " ".join(["python benchmarks/sample_error.py", *sys.argv[1:]])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in shape or SHAPES:
            path = Path(folder) / "file.jsonl"
            write(path, SHAPES[name], requests)
            rows += measured(name, path, requests, sizes, seeds)
            found: list[dict[str, Any]] = [asdict(row) for row in rows]
            (out / "sample_error.json").write_text(json.dumps(found, indent=1) + "\n")
            (out / "sample_error.md").write_text(report(rows, requests, command))
    print(report(rows, requests, command))


if __name__ == "__main__":
    typer.run(main)
