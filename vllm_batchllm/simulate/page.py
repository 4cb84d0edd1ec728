# SPDX-License-Identifier: Apache-2.0
"""Simulations as an HTML page: the same figures as in the terminal, with pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm_batchllm.page.figures import occupancy, ratio_bars, saved_against_optimum, step_profile
from vllm_batchllm.page.forest_boxes import forest_boxes
from vllm_batchllm.page.icicle import GroupBox, prefixes
from vllm_batchllm.page.page import Drawing, Page, Section, Table
from vllm_batchllm.page.parts import stacked_parts
from vllm_batchllm.page.writing import into_folder
from vllm_batchllm.simulate.arms import SORTED
from vllm_batchllm.simulate.run import SimulatedRun
from vllm_batchllm.simulate.setup import Setup
from vllm_batchllm.simulate.show import best_cut, duration, engine_of, header, rows, tuned_as
from vllm_batchllm.simulate.suite import Simulation, SimulationReport, thinned
from vllm_batchllm.workloads.batch import Batch

PARTS = {
    "linear_s": "matrix products of the layers",
    "head_s": "output head",
    "prefill_attention_s": "attention of prompts",
    "decode_attention_s": "attention of outputs",
    "communication_s": "between devices",
    "launch_s": "waiting for launches",
    "step_s": "fixed, per step",
    "requests_s": "per scheduled request",
}
"""The fields of a `StepTime` in words."""
NOTE = (
    "Simulated, not measured: the schedulers are real, a cost model stands for the device. "
    f"“over {SORTED}” is the makespan of sorted requests on stock vLLM over the arm's: above 1, "
    "the arm is faster. With vLLM's attention kernels, no order and no admission takes less than the "
    "lower bound."
)

POOL_NOTE = (
    "Simulated, not measured: every replica is a real scheduler with a clock of its own, a cost model stands for the devices. "
    "“over first” is the makespan of the first row over the arm's. Twice: prompt tokens that replicas compute and one that has the "
    "whole batch need not, over all prompt tokens; the best cut is the cheapest one into as many equal parts."
)


def page_writer(
    folder: Path, plans: Sequence[tuple[Batch, Setup]]
) -> Callable[[SimulationReport], None]:
    """What writes the page of a report, which may still grow, into `folder`.

    The folder is made and tried at once; prefixes are looked at when a batch has its first row.

    Raises:
        UsageError: the folder cannot be written; so does the returned function.
    """
    groups: list[tuple[GroupBox, ...]] = []

    def make(report: SimulationReport) -> Page:
        for batch, setup in plans[len(groups) : len(report.results)]:
            groups.append(forest_boxes(batch.prompts, setup.sizes.block_size))
        return simulation_page(report, groups)

    return into_folder(folder, make)


def simulation_page(report: SimulationReport, groups: Sequence[Sequence[GroupBox]] = ()) -> Page:
    """The page of a report: summary, all batches together, then each by itself.

    groups: the widest prefix groups of each result, by its place.
    """
    results = report.results
    names = ", ".join(str(result.workload["name"]) for result in results) or "no results"
    sections = [_overview(results)] if len(results) > 1 else []
    for place, result in enumerate(results):
        sections.append(_details(report, result, groups[place] if place < len(groups) else ()))
    return Page(
        title=f"Simulation: {names}",
        summary=tuple(_summary(report)),
        command=report.command,
        environment={name: str(value) for name, value in report.environment.items()},
        sections=tuple(sections),
    )


def _summary(report: SimulationReport) -> list[str]:
    lines = []
    for arm in _arms(report.results):
        speeds = [speed for one in report.results if (speed := one.speed_over(arm)) is not None]
        if speeds and arm != _base(report.results):
            lines.append(f"{arm} against {_base(report.results)}: {_range(speeds)} times as fast.")
    bounds = [bound for result in report.results if (bound := _bound(result)) is not None]
    if bounds:
        lines.append(
            f"With vLLM's attention kernels, no schedule is more than {_range(bounds)} times as fast "
            f"as {_base(report.results)}."
        )
    engines = dict.fromkeys(engine_of(result) for result in report.results)
    return lines + [f"Simulated: {engine}." for engine in engines]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _bound(result: Simulation) -> float | None:
    base = result.run_of(result.base)
    if base is None or result.bound_s is None:
        return None
    return base.metrics.makespan_s / result.bound_s


def _base(results: Sequence[Simulation]) -> str:
    return results[0].base if results else SORTED


def _note(result: Simulation) -> str:
    return NOTE if result.num_replicas == 1 else POOL_NOTE


def _arms(results: Sequence[Simulation]) -> list[str]:
    return list(dict.fromkeys(run.metrics.arm for one in results for run in one.runs))


def _overview(results: Sequence[Simulation]) -> Section:
    return Section("All batches", _note(results[0]), figures=tuple(_comparisons(results)))


def _comparisons(results: Sequence[Simulation]) -> list[Drawing]:
    """Speeds over sorted and savings, a row for each batch."""
    names = [str(result.workload["name"]) for result in results]
    arms, base = _arms(results), _base(results)
    saved: Mapping[str, list[float | None]] = {
        arm: [run.metrics.saved_ratio if (run := one.run_of(arm)) else None for one in results]
        for arm in arms
    }
    optimum = [max(run.metrics.optimal_saved_ratio for run in one.runs) for one in results]
    drawings = [saved_against_optimum(names, saved, optimum)]
    speeds = {
        arm: [(s, s, s) if (s := one.speed_over(arm)) is not None else None for one in results]
        for arm in arms
        if arm != base
    }
    if any(any(row) for row in speeds.values()):
        label = f"makespan of {base} / makespan of the arm"
        drawings.insert(0, ratio_bars(names, speeds, label, f"How many times as fast as {base}"))
    return drawings


def _details(report: SimulationReport, result: Simulation, groups: Sequence[GroupBox]) -> Section:
    workload, engine = result.workload, result.engine
    about = (
        f"{workload['description'] or 'batch'}: {workload['num_requests']:,} requests, "
        f"{workload['prompt_tokens']:,} prompt and {workload['output_tokens']:,} output tokens."
    )
    sizes = (
        f"{engine_of(result)}: {engine['kv_blocks']:,} KV blocks of {engine['block_size']} tokens "
        f"({engine['kv_blocks'] * engine['block_size']:,} tokens), "
        f"{engine['max_num_batched_tokens']:,} tokens a step, {engine['max_num_seqs']:,} requests "
        f"at once ({engine['batchllm_max_num_seqs']:,} for batchllm){tuned_as(result)}{best_cut(result)}."
    )
    alone = len(report.results) == 1
    texts = [about, sizes, *([_note(result)] if alone else [])]
    figures = [*(_comparisons([result]) if alone else []), _parts(result), *_steps(result)]
    cells = tuple(map(tuple, rows(report, result)))
    return Section(
        str(workload["name"]),
        "\n\n".join(texts),
        Table(tuple(header(report)), cells),
        (*figures, *prefixes(groups)),
    )


def _parts(result: Simulation) -> Drawing:
    arms = [f"{run.metrics.arm}, {duration(run.metrics.makespan_s)}" for run in result.runs]
    parts = {
        words: [getattr(run.parts, name) for run in result.runs] for name, words in PARTS.items()
    }
    return stacked_parts(arms, parts, "seconds", "Where the time goes")


def _steps(result: Simulation) -> list[Drawing]:
    num_blocks = int(result.engine["kv_blocks"])
    tokens = {run.metrics.arm: _curve(run.metrics.step_tokens, run) for run in result.runs}
    held = {
        run.metrics.arm: [blocks / num_blocks for blocks in _curve(run.metrics.step_kv_blocks, run)]
        for run in result.runs
    }
    drawings = [step_profile(tokens, "tokens", "Tokens in each step")]
    if any(held.values()):
        drawings.append(occupancy(held, "KV blocks held", "Share of KV blocks held in each step"))
    return drawings


def _curve(values: Sequence[int], run: SimulatedRun) -> Sequence[float]:
    """As it is, of several replicas thinned out: they make many more steps than a picture has points."""
    return values if run.pool is None else thinned(values)
