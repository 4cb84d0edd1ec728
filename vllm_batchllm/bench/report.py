# SPDX-License-Identifier: Apache-2.0
"""Turns results into JSON (everything, every round) and Markdown.

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

from vllm_batchllm.bench.tables import (
    NOTE,
    description,
    detail_header,
    detail_rows,
    differences,
    summary_header,
    summary_rows,
)
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import (
    ABResult,
    Difference,
    OutputMatch,
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
        UsageError: the data is of another schema.
    """
    if data.get("schema") != SCHEMA:
        raise UsageError(f"report has schema {data.get('schema')!r}; this version reads {SCHEMA}")
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
        UsageError: the folder cannot be written.
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
        raise UsageError(f"cannot write the report into {folder}: {error}") from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def markdown(report: Report) -> str:
    """The whole report as Markdown: where it ran, the summary, one table per workload."""
    lines = ["# Stock, sorted and batchllm on the same engine arguments", ""]
    if report.command:
        lines += [f"`{report.command}`", ""]
    lines += [f"- {name}: {value}" for name, value in report.environment.items()]
    lines += [
        "",
        NOTE,
        "",
    ]
    if report.results:
        lines += _table(summary_header(report.results), summary_rows(report.results))
    lines += [f"\n{name} failed: {reason}" for name, reason in report.failures]
    for result in report.results:
        lines += ["", *_details(result)]
    return "\n".join(lines) + "\n"


def _details(result: ABResult) -> list[str]:
    lines = [f"## {result.workload['name']}", "", description(result), ""]
    lines += _table(detail_header(), detail_rows(result))
    return lines + [f"\n{line}" for line in differences(result)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in header[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]
