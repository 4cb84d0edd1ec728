# SPDX-License-Identifier: Apache-2.0
"""The figures of a report as rows of text: for Markdown, for the page, and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_batchllm.measure.metrics import ABResult, PairedRatio

NOTE = (
    "Times are medians over the rounds; ratios are taken within rounds: median (min–max). "
    "Reuse is the share of the possible saving that requests found at their first admission."
)


def ratio_text(ratio: PairedRatio) -> str:
    """`median (min–max)` of a paired ratio, and whether it shows anything."""
    text = f"{ratio.median:.2f} ({ratio.min:.2f}–{ratio.max:.2f})"
    return text if ratio.shows_difference else f"{text}, no difference shown"


def summary_header(results: Sequence[ABResult]) -> list[str]:
    """Column titles of `summary_rows`."""
    arms = arms_of(results)
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


def detail_header() -> list[str]:
    """Column titles of `detail_rows`."""
    return ["arm", *(title for title, _, _ in _DETAILS)]


def detail_rows(result: ABResult) -> list[list[str]]:
    """One row per arm of a workload: medians over the rounds."""
    return [
        [arm, *(format(result.medians(arm)[field], style) for _, field, style in _DETAILS)]
        for arm in result.arms
    ]


def description(result: ABResult) -> str:
    """What was run, in one sentence."""
    workload = result.workload
    rounds = len(result.runs) // len(result.arms)
    pressure = workload["pressure"]
    return (
        f"{workload['description']}; lengths ÷ {workload['scale']:g}, seed {workload['seed']}, "
        f"{workload['num_requests']} requests, {workload['prompt_tokens']} prompt and "
        f"{workload['output_tokens']} output tokens, {rounds} rounds, "
        f"{result.engine['kv_blocks']} KV blocks of {workload['block_size']} tokens"
        + (f" (pressure {pressure:g})." if pressure else ".")
        + _sizes(result)
    )


def _sizes(result: ABResult) -> str:
    """The sizes with which each arm ran, as a sentence; empty where they were not recorded."""
    by_arm = result.engine.get("sizes") or {}
    parts = [
        f"{arm} {sizes['max_num_seqs']:g}, {sizes['max_num_batched_tokens']:g}, {sizes['watermark']:g}"
        for arm, sizes in by_arm.items()
    ]
    return f" Requests at once, tokens a step, watermark: {'; '.join(parts)}." if parts else ""


def differences(result: ABResult) -> list[str]:
    """One sentence for each output that differs from the reference and is no shown tie."""
    return [
        f"{match.arm}, round {item.round + 1}: request {item.request} differs from "
        f"stock at output token {item.position} ({item.got} instead of {item.expected})"
        for match in result.matches
        for item in match.unresolved
    ]


def arms_of(results: Sequence[ABResult]) -> list[str]:
    """All arms that ran, each once, in the order of appearance."""
    return list(dict.fromkeys(arm for result in results for arm in result.arms))
