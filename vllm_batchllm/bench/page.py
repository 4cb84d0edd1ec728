# SPDX-License-Identifier: Apache-2.0
"""A benchmark's report as an HTML page: the same figures as in `bench.md`, with pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm_batchllm.bench.plots import last_runs, names_of, ratio_label, ratio_series
from vllm_batchllm.bench.report import Report
from vllm_batchllm.bench.suite import Plan
from vllm_batchllm.bench.tables import (
    NOTE,
    arms_of,
    description,
    detail_header,
    detail_rows,
    differences,
    ratio_text,
    summary_header,
    summary_rows,
)
from vllm_batchllm.measure.metrics import ABResult
from vllm_batchllm.page.figures import occupancy, ratio_bars, saved_against_optimum, step_profile
from vllm_batchllm.page.forest_boxes import forest_boxes
from vllm_batchllm.page.icicle import GroupBox, prefixes
from vllm_batchllm.page.page import Drawing, Page, Section, Table
from vllm_batchllm.page.writing import into_folder

Groups = Mapping[str, Sequence[GroupBox]]
"""Prefix groups of each workload, by its name."""


def page_writer(folder: Path, plans: Sequence[Plan]) -> Callable[[Report], None]:
    """What writes the page of a report, which may still grow, into `folder`.

    The folder is made and tried at once; prefixes are looked at when a workload is finished.

    Raises:
        UsageError: the folder cannot be written; so does the returned function.
    """
    by_name = {plan.batch.name: plan for plan in plans}
    groups: dict[str, tuple[GroupBox, ...]] = {}

    def make(report: Report) -> Page:
        for name in names_of(report.results):
            if name not in groups and name in by_name:
                plan = by_name[name]
                groups[name] = forest_boxes(plan.batch.prompts, plan.spec.block_size)
        return bench_page(report, groups)

    return into_folder(folder, make)


def bench_page(report: Report, groups: Groups | None = None) -> Page:
    """The page of a report: summary, all workloads together, then each by itself.

    `groups` adds a picture of the prefixes to the workloads that it names.
    """
    sections = [_overview(report.results)] if report.results else []
    if report.failures:
        rows = tuple(report.failures)
        sections.append(Section("What failed", table=Table(("workload", "reason"), rows)))
    sections += [_details(result, groups or {}) for result in report.results]
    num_workloads = len(report.results) + len(report.failures)
    return Page(
        title=f"Benchmark of {_counted(num_workloads, 'workload')}: {', '.join(_arms(report))}",
        summary=tuple(_summary(report)),
        command=report.command,
        environment={name: str(value) for name, value in report.environment.items()},
        sections=tuple(sections),
    )


def _arms(report: Report) -> list[str]:
    return arms_of(report.results) or ["no results"]


def _summary(report: Report) -> list[str]:
    lines = [_speed(report.results, arm) for arm in ratio_series(report.results)]
    num_different = sum(len(differences(result)) for result in report.results)
    if num_different:
        verb = "differs" if num_different == 1 else "differ"
        lines.append(f"{_counted(num_different, 'output')} {verb} from the reference: see below.")
    elif any(result.matches for result in report.results):
        lines.append("Every output equals the reference's, ties shown by log-probabilities aside.")
    num_rounds = {len(result.runs) // len(result.arms) for result in report.results}
    if num_rounds and max(num_rounds) < 3:
        lines.append("Fewer than 3 rounds: a look, not a measurement.")
    return lines + [f"{name} failed: {reason}" for name, reason in report.failures]


def _speed(results: Sequence[ABResult], arm: str) -> str:
    """How much faster than `arm`: the one ratio, or the range of the medians."""
    ratios = [ratio for result in results for ratio in result.ratios() if ratio.slower == arm]
    medians = [ratio.median for ratio in ratios]
    who = f"{ratios[0].faster} against {arm}"
    if len(ratios) == 1:
        return f"{who}: {ratio_text(ratios[0])} times as fast."
    return (
        f"{who}: {min(medians):.2f} to {max(medians):.2f} times as fast, "
        f"medians of {_counted(len(ratios), 'workload')}."
    )


def _overview(results: Sequence[ABResult]) -> Section:
    names = names_of(results)
    medians = [{arm: result.medians(arm) for arm in result.arms} for result in results]
    saved = {
        arm: [found[arm]["saved_ratio"] if arm in found else None for found in medians]
        for arm in arms_of(results)
    }
    optimum = [max(arm["optimal_saved_ratio"] for arm in found.values()) for found in medians]
    figures = [saved_against_optimum(names, saved, optimum)]
    series = ratio_series(results)
    if series:
        title = "How many times as long the other arms take"
        figures.insert(0, ratio_bars(names, series, ratio_label(results), title))
    rows = tuple(map(tuple, summary_rows(results)))
    return Section(
        "All workloads", NOTE, Table(tuple(summary_header(results)), rows), tuple(figures)
    )


def _details(result: ABResult, groups: Groups) -> Section:
    name = str(result.workload["name"])
    # Turned: a column per arm leaves room for it on a narrow screen.
    header, *rows = zip(detail_header(), *detail_rows(result), strict=True)
    text = "\n\n".join([description(result), _engine(result), *differences(result)])
    return Section(
        name,
        text,
        Table(("", *header[1:]), tuple(rows), "Medians over the rounds"),
        (*_steps(result), *prefixes(groups.get(name, ()))),
    )


def _engine(result: ABResult) -> str:
    """The engine's arguments in words; those of records that lack them are left out."""
    engine = result.engine
    known = (
        ("model", "model {}"),
        ("dtype", "{}"),
        ("max_num_batched_tokens", "{} tokens a step"),
        ("max_num_seqs", "{} requests at once"),
    )
    parts = [words.format(engine[key]) for key, words in known if key in engine]
    options = engine.get("batchllm_options", ())
    parts += [f"batchllm option {key} = {value}" for key, value in options]
    return f"Engine: {', '.join(parts)}." if parts else ""


def _steps(result: ABResult) -> list[Drawing]:
    """Pictures of the last round of each arm."""
    runs = last_runs(result)
    drawings = []
    if any(run.step_tokens for run in runs):
        tokens = {run.arm: run.step_tokens for run in runs}
        drawings.append(step_profile(tokens, "tokens", "Tokens in each step, last round"))
    # One block is vLLM's null block, which nobody can hold.
    num_blocks = max(1, int(result.engine["kv_blocks"]) - 1)
    if any(run.step_kv_blocks for run in runs):
        held = {run.arm: [blocks / num_blocks for blocks in run.step_kv_blocks] for run in runs}
        title = "Share of KV blocks held after each step, last round"
        drawings.append(occupancy(held, "KV blocks held", title))
    return drawings


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
