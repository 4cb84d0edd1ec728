# SPDX-License-Identifier: Apache-2.0
"""Turns results into JSON (everything, every round), Markdown and a terminal table.

The JSON is the record: medians and ratios in the tables are computed from it, and it can be
read back. A report is written anew after each workload, so that an interrupted benchmark
leaves what it has finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_batchllm.bench.errors import BenchError
from vllm_batchllm.bench.metrics import (
    ABResult,
    Difference,
    OutputMatch,
    PairedRatio,
    RunMetrics,
)

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Report:
    """Results of several workloads and where they came from."""

    results: tuple[ABResult, ...]
    environment: Mapping[str, Any]
    command: str = ""
    failures: tuple[tuple[str, str], ...] = ()


def report_to_dict(report: Report) -> dict[str, Any]:
    """Plain JSON values; medians and ratios are added for readers in other languages."""
    return {
        "schema": SCHEMA,
        "command": report.command,
        "environment": dict(report.environment),
        "results": [result_to_dict(result) for result in report.results],
        "failures": [list(item) for item in report.failures],
    }


def result_to_dict(result: ABResult) -> dict[str, Any]:
    """One workload as plain JSON values."""
    return asdict(result) | {
        "medians": {arm: result.medians(arm) for arm in result.arms},
        "paired_ratios": [asdict(ratio) for ratio in result.ratios()],
        "output_match": {match.arm: match.ratio for match in result.matches},
    }


def report_from_dict(data: Mapping[str, Any]) -> Report:
    """Read back what `report_to_dict` made.

    Raises:
        BenchError: the data is of another schema.
    """
    if data.get("schema") != SCHEMA:
        raise BenchError(f"report has schema {data.get('schema')!r}; this version reads {SCHEMA}")
    return Report(
        results=tuple(map(result_from_dict, data["results"])),
        environment=data["environment"],
        command=data["command"],
        failures=tuple((name, reason) for name, reason in data["failures"]),
    )


def result_from_dict(data: Mapping[str, Any]) -> ABResult:
    """Read back what `result_to_dict` made; derived figures are dropped."""
    return ABResult(
        workload=data["workload"],
        engine=data["engine"],
        arms=tuple(data["arms"]),
        runs=tuple(map(_run_from_dict, data["runs"])),
        matches=tuple(
            OutputMatch(
                **{**match, "differences": tuple(Difference(**d) for d in match["differences"])}
            )
            for match in data["matches"]
        ),
    )


def _run_from_dict(data: Mapping[str, Any]) -> RunMetrics:
    """Read back one run; records of before a field existed have its default."""
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return RunMetrics(**{**data, **lists})


def write_report(report: Report, folder: Path) -> None:
    """Write `bench.json`, `bench.md` and `bench.png`, each replaced as a whole.

    Raises:
        BenchError: the folder cannot be written.
    """
    from vllm_batchllm.bench.plots import plot_results

    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report_to_dict(report), indent=1)
        _replace(folder / "bench.json", f"{text}\n")
        _replace(folder / "bench.md", markdown(report))
        if report.results:
            plot_results(report.results, folder / "bench.png")
    except OSError as error:
        raise BenchError(f"cannot write the report into {folder}: {error}") from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def ratio_text(ratio: PairedRatio) -> str:
    """`median (min–max)` of a paired ratio."""
    return f"{ratio.median:.2f} ({ratio.min:.2f}–{ratio.max:.2f})"


def summary_header(results: Sequence[ABResult]) -> list[str]:
    """Column titles of `summary_rows`."""
    arms = _arms(results)
    pairs = dict.fromkeys(f"{r.slower} / {r.faster}" for result in results for r in result.ratios())
    return [
        "workload",
        "requests",
        "KV blocks",
        *(f"{arm}, s" for arm in arms),
        *pairs,
        *(f"reuse, {arm}" for arm in arms),
        *(f"preempted, {arm}" for arm in arms),
        "output match",
    ]


def summary_rows(results: Sequence[ABResult]) -> list[list[str]]:
    """One row per workload: medians of times, paired ratios, reuse, preemptions, match."""
    header = summary_header(results)
    return [[_cell(result, column) for column in header] for result in results]


def _cell(result: ABResult, column: str) -> str:
    fixed = {
        "workload": lambda: str(result.workload["name"]),
        "requests": lambda: str(result.workload["num_requests"]),
        "KV blocks": lambda: str(result.engine["kv_blocks"]),
        "output match": lambda: match_text(result),
    }
    if column in fixed:
        return fixed[column]()
    for ratio in result.ratios():
        if column == f"{ratio.slower} / {ratio.faster}":
            return ratio_text(ratio)
    for arm in result.arms:
        if column == f"{arm}, s":
            return f"{result.medians(arm)['makespan_s']:.2f}"
        if column == f"reuse, {arm}":
            return f"{result.medians(arm)['reuse_efficiency']:.4f}"
        if column == f"preempted, {arm}":
            return f"{result.medians(arm)['preemptions']:g}"
    return "–"


def match_text(result: ABResult) -> str:
    """The lowest match of the arms, with the ties it rests on."""
    if not result.matches:
        return "–"
    lowest = min(result.matches, key=lambda match: match.ratio)
    ties = sum(match.num_near_ties for match in result.matches)
    note = f" (near ties: {ties})" if ties else ""
    return f"{lowest.ratio:.2%}{note}"


def markdown(report: Report) -> str:
    """The whole report as Markdown: where it ran, the summary, one table per workload."""
    lines = ["# Stock, sorted and batchllm on the same engine arguments", ""]
    if report.command:
        lines += [f"`{report.command}`", ""]
    lines += [f"- {name}: {value}" for name, value in report.environment.items()]
    lines += [
        "",
        "Times are medians over the rounds; ratios are taken within rounds: median (min–max).",
        "Reuse is the share of the possible saving that requests found at their first admission.",
        "",
    ]
    if report.results:
        lines += _table(summary_header(report.results), summary_rows(report.results))
    lines += [f"\n{name} failed: {reason}" for name, reason in report.failures]
    for result in report.results:
        lines += ["", *_details(result)]
    return "\n".join(lines) + "\n"


_DETAILS = (
    ("makespan, s", "makespan_s", ".2f"),
    ("processor time, s", "cpu_s", ".2f"),
    ("tokens/s", "tokens_per_s", ".0f"),
    ("saved at admission", "admission_saved_ratio", ".1%"),
    ("saved, recomputation counted", "saved_ratio", ".1%"),
    ("possible", "optimal_saved_ratio", ".1%"),
    ("reuse", "reuse_efficiency", ".4f"),
    ("preemptions", "preemptions", "g"),
    ("steps", "steps", "g"),
    ("tokens/step", "tokens_per_step", ".0f"),
    ("KV peak, blocks", "kv_peak_blocks", "g"),
    ("running at most", "running_peak", "g"),
    ("planning", "plan_share", ".2%"),
)


def _details(result: ABResult) -> list[str]:
    workload = result.workload
    rounds = len(result.runs) // len(result.arms)
    pressure = workload["pressure"]
    lines = [
        f"## {workload['name']}",
        "",
        f"{workload['description']}; lengths ÷ {workload['scale']:g}, seed {workload['seed']}, "
        f"{workload['num_requests']} requests, {workload['prompt_tokens']} prompt and "
        f"{workload['output_tokens']} output tokens, {rounds} rounds, "
        f"{result.engine['kv_blocks']} KV blocks of {workload['block_size']} tokens"
        + (f" (pressure {pressure:g})." if pressure else "."),
        "",
    ]
    rows = [
        [arm, *(format(result.medians(arm)[field], style) for _, field, style in _DETAILS)]
        for arm in result.arms
    ]
    lines += _table(["arm", *(title for title, _, _ in _DETAILS)], rows)
    for match in result.matches:
        for item in match.unresolved:
            lines.append(
                f"\n{match.arm}, round {item.round + 1}: request {item.request} differs from "
                f"stock at output token {item.position} ({item.got} instead of {item.expected})"
            )
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in header[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def _arms(results: Sequence[ABResult]) -> list[str]:
    return list(dict.fromkeys(arm for result in results for arm in result.arms))
