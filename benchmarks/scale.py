# SPDX-License-Identifier: Apache-2.0
"""Planning and scheduling at scale: every figure of the section "Scale" in docs/benchmarks.md.

    python benchmarks/scale.py --out benchmarks/results/scale
    python benchmarks/scale.py --out /tmp/scale --quick

Three parts, each a script of its own that runs in a process of its own, so that memory starts
afresh: planning from 1,000 to 1,000,000 requests and the industry shape (``forest_scale.py``), and
the steps of the scheduler against stock vLLM's (``step_cost.py``). Writes ``scale.json`` anew
after every figure, so an interrupted run leaves what it has; then ``scale.md`` and ``scale.png``.

Where vLLM's hashing alone would take longer than ``--max-hashing-s``, hashes are made up for the
planning, and the time of hashing is that of the next smaller size, extrapolated and marked so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from scale_report import plot, report

Row = dict[str, Any]
HERE = Path(__file__).parent

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
INDUSTRY_REQUESTS = 8_000
WAITING = (1_000, 100_000, 1_000_000)
RUNNING = (100, 1_000, 4_000)
SORTED_WAITING = 100_000
"""Requests that wait where both arms are measured in the same order, too."""
EXTENT = {
    "max_requests": (1_000_000, 30_000),
    "max_running": (4_000, 1_000),
    "rounds": (3, 1),
    "repeats": (3, 1),
    "steps": (300, 100),
}
"""What is not given on the command line, in full and with ``--quick``."""
MANY = 300_000
"""Planning of so many requests is measured once: it takes long enough to be steady."""


def run_apart(script: str, arguments: Sequence[str]) -> list[Row]:
    """The JSON lines that a script of this folder prints.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on standard error.
    """
    command = [sys.executable, str(HERE / f"{script}.py"), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def planning_row(num_requests: int, hashes: str, shape: str, repeats: int) -> Row:
    """Planning of one batch through the scheduler's queue."""
    arguments = ["--shape", shape, "--requests", str(num_requests), "--hashes", hashes]
    arguments += ["--order", "dfs", "--through", "queue", "--repeats", str(repeats)]
    return run_apart("forest_scale", arguments)[0]


def planning_rows(sizes: Sequence[int], repeats: int, max_hashing_s: float) -> Iterator[Row]:
    """The main shape at every size, smaller sizes first."""
    row: Row | None = None
    for size in sorted(sizes):
        expected_s = row["hashing_s"] * size / row["num_requests"] if row else 0.0
        is_long = expected_s > max_hashing_s
        many = 1 if size >= MANY else repeats
        row = planning_row(size, "made" if is_long else "vllm", "main", many)
        row["hashing_is_extrapolated"] = is_long
        if is_long:
            row["hashing_s"] = round(expected_s, 5)
        _tell(row, f"{size:,} requests planned in {row['total_s']:.3f} s")
        yield row


def industry_rows(num_requests: int, repeats: int) -> Iterator[Row]:
    """The industry shape at scale 1."""
    row = planning_row(num_requests, "vllm", "industry", repeats)
    _tell(row, f"industry, {num_requests:,} requests, planned in {row['total_s']:.3f} s")
    yield row


def step_rows(waiting: int, running: Sequence[int], arrival: str, args: Any) -> Iterator[Row]:
    """Steps against stock with so many waiting, a row for each number running."""
    arguments = ["--waiting", str(waiting), "--running", *map(str, running)]
    arguments += ["--arrival", arrival, "--rounds", str(args.rounds), "--steps", str(args.steps)]
    arguments += ["--warmup", str(args.warmup)]
    for row in run_apart("step_cost", arguments):
        _tell(row, f"{waiting:,} waiting ({arrival}), {row['num_running']:,} running")
        yield row


def _tell(row: Row, text: str) -> None:
    row["load_average"] = round(os.getloadavg()[0], 2)
    print(text, file=sys.stderr, flush=True)


def parts(args: argparse.Namespace) -> list[tuple[str, Iterator[Row]]]:
    """What is to be measured: names in the result, and rows as they come."""
    most, smallest = args.max_requests, min(SIZES)
    sizes = [size for size in SIZES if size <= most] or [max(most // 4, 1), most]
    waiting = [number for number in WAITING if number <= max(most, smallest)]
    running = [n for n in RUNNING if n <= args.max_running] or [args.max_running]
    jobs = [
        ("planning", planning_rows(sizes, args.repeats, args.max_hashing_s)),
        ("industry", industry_rows(min(INDUSTRY_REQUESTS, most), args.repeats)),
    ]
    if not args.planning_only:
        jobs += [("steps", step_rows(n, running, "shuffled", args)) for n in waiting]
        if SORTED_WAITING in waiting:
            jobs.append(("steps", step_rows(SORTED_WAITING, running, "sorted", args)))
    return jobs


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ``--quick`` sets what is not given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--quick", action="store_true", help="reduced sizes, a few minutes")
    parser.add_argument("--max-requests", type=int, help="planned, or waiting, at most")
    parser.add_argument("--max-running", type=int)
    parser.add_argument("--rounds", type=int, help="of the steps")
    parser.add_argument("--repeats", type=int, help="of the planning")
    parser.add_argument("--steps", type=int, help="a round")
    parser.add_argument("--warmup", type=int, default=100, help="steps before those")
    parser.add_argument("--max-hashing-s", type=float, default=900.0)
    parser.add_argument("--planning-only", action="store_true")
    args = parser.parse_args(argv)
    for name, (full, quick) in EXTENT.items():
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    shown = {name: value for name, value in vars(args).items() if name != "out"}
    results: Row = {
        "arguments": shown,
        "cpus": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": sys.version.split()[0],
        **{name: [] for name in ("planning", "industry", "steps")},
    }
    for name, rows in parts(args):
        for row in rows:
            results[name].append(row)
            (args.out / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    (args.out / "scale.md").write_text(text)
    plot(results, args.out / "scale.png")
    print(text)


if __name__ == "__main__":
    main()
