# SPDX-License-Identifier: Apache-2.0
"""Tables and the plot of ``scale.py``, from its raw results.

python benchmarks/scale_report.py benchmarks/results/scale
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
INDUSTRY_SHARE = 0.0005
"""Of the makespan that planning the industry shape may take."""


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power of the size that the values grow by: least squares over logarithms.

    Raises:
        ValueError: fewer than two sizes, or a figure that is not above 0.
    """
    if len(set(sizes)) < 2:
        raise ValueError("an exponent needs two sizes or more")
    if min(*sizes, *values) <= 0:
        raise ValueError("an exponent needs sizes and values above 0")
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)


def with_hashing_s(row: Row) -> float:
    """Planning and vLLM's hashing together, seconds."""
    return float(row["total_s"] + row["hashing_s"])


def exponents(rows: Sequence[Row]) -> dict[str, float | None]:
    """Growth exponents of times and memory; extrapolated figures and zeros are left out."""
    measured = [row for row in rows if not row["hashing_is_extrapolated"]]
    return {
        "planning": _exponent(rows, [row["total_s"] for row in rows]),
        "planning and hashing": _exponent(measured, [with_hashing_s(row) for row in measured]),
        "memory of planning": _exponent(rows, [_memory(row) for row in rows]),
        "memory of hash lists": _exponent(rows, [row["hash_lists_gb"] for row in rows]),
    }


def _memory(row: Row) -> float:
    return float(row["memory_gb_beside_hash_lists"])


def _exponent(rows: Sequence[Row], values: Sequence[float]) -> float | None:
    known = [(row["num_requests"], v) for row, v in zip(rows, values, strict=True) if v > 0]
    if len({size for size, _ in known}) < 2:
        return None
    sizes, kept = zip(*known, strict=True)
    return growth_exponent(sizes, kept)


def report(results: Row) -> str:
    """The tables, as Markdown."""
    rows = results["planning"]
    texts = [_planning_table(rows), _exponents_text(rows)]
    texts += [_industry_text(row) for row in results["industry"]]
    if results["steps"]:
        texts.append(_steps_table(results["steps"]))
    return "\n\n".join(texts) + "\n"


def _planning_table(rows: Sequence[Row]) -> str:
    lines = [
        "| requests | prompt tokens | planning, s | µs each | vLLM's hashing, s | together, s "
        + "| planning, GB | hash lists, GB |",
        "| ---: |" + " ---: |" * 7,
    ]
    for row in rows:
        mark = " (extrapolated)" if row["hashing_is_extrapolated"] else ""
        lines.append(
            f"| {row['num_requests']:,} | {row['num_prompt_tokens']:,} | {row['total_s']:.3f} "
            f"| {row['mean_us_per_request']:.1f} | {row['hashing_s']:.2f}{mark} "
            f"| {with_hashing_s(row):.2f}{mark} | {_memory(row):.4f} "
            f"| {row['hash_lists_gb']:.3f} |"
        )
    return "\n".join(lines)


def _exponents_text(rows: Sequence[Row]) -> str:
    known = {name: value for name, value in exponents(rows).items() if value is not None}
    if not known:
        return "Growth exponents need two sizes."
    figures = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    return f"Growth exponents (least squares over logarithms, measured figures only): {figures}."


def _industry_text(row: Row) -> str:
    return (
        f"Industry shape, {row['num_requests']:,} requests, {row['num_prompt_tokens']:,} prompt "
        f"tokens: planning {row['total_s']:.4f} s ({row['mean_us_per_request']:.1f} µs a request), "
        f"which is at most {INDUSTRY_SHARE:.2%} of any makespan from "
        f"{row['total_s'] / INDUSTRY_SHARE:.0f} s on. vLLM's hashing, {row['hashing_s']:.2f} s, is "
        "not in it: stock vLLM hashes just as much."
    )


def _steps_table(rows: Sequence[Row]) -> str:
    lines = [
        "| waiting | arrival | running | median step, ms: stock | ours | ratio | all steps, ratio "
        + "| rounds |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        rounds = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        lines.append(
            f"| {row['num_waiting']:,} | {row['arrival']} | {row['num_running']:,} "
            f"| {row['stock_ms_of_median_step']:.2f} | {row['batchllm_ms_of_median_step']:.2f} "
            f"| {row['ratio_of_medians']:.3f} | {row['ratio']:.3f} | {rounds} |"
        )
    return "\n".join(lines)


def plot(results: Row, path: Path) -> None:
    """Time and memory of planning over the number of requests, as a PNG."""
    rows = results["planning"]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    powers = exponents(rows)
    sizes = [row["num_requests"] for row in rows]
    _line(times, sizes, [row["total_s"] for row in rows], "planning", powers)
    measured = [row for row in rows if not row["hashing_is_extrapolated"]]
    counts = [row["num_requests"] for row in measured]
    _line(times, counts, [with_hashing_s(r) for r in measured], "planning and hashing", powers)
    guessed = [row for row in rows if row["hashing_is_extrapolated"]]
    if guessed:
        points = [row["num_requests"] for row in guessed], [with_hashing_s(r) for r in guessed]
        times.plot(*points, "x", color="C1", label="with hashing, extrapolated")
    _line(memory, sizes, [_memory(row) for row in rows], "memory of planning", powers)
    lists = [row["hash_lists_gb"] for row in rows]
    _line(memory, sizes, lists, "memory of hash lists", powers)
    times.set(title="2,000 shared + 200 own tokens, degree 16", ylabel="CPU time, s")
    memory.set(title="memory, beside tokens", ylabel="GB")
    for axes in (times, memory):
        axes.set(xscale="log", yscale="log", xlabel="requests")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(
    axes: Any, sizes: Sequence[float], values: Sequence[float], name: str, powers: Row
) -> None:
    power = powers[name]
    label = name if power is None else f"{name}: exponent {power:.2f}"
    axes.plot(sizes, values, marker="o", label=label)


def main() -> None:
    folder = Path(sys.argv[1])
    results = json.loads((folder / "scale.json").read_text())
    text = report(results)
    (folder / "scale.md").write_text(text)
    plot(results, folder / "scale.png")
    print(text)


if __name__ == "__main__":
    main()
