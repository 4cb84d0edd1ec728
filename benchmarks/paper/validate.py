# SPDX-License-Identifier: Apache-2.0
"""The cost model against published figures: fit on one half, error on the other.

    python benchmarks/paper/validate.py --out benchmarks/results/paper

Writes `validation.json` (every row) and `validation.md` (constants and tables).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from published import FIGURES, UNIT, WHAT_IF, Published
from sim_rows import run_rows, table

from vllm_batchllm.admission.least_squares import solve_nonnegative
from vllm_batchllm.simulate.cost_model import PUBLISHED, Constants

_AT_UNIT = ("linear_s", "head_s", "prefill_attention_s", "decode_attention_s")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    keep: Annotated[bool, typer.Option(help="Keep rows of an earlier run.")] = False,
) -> None:
    """Simulate every published figure, fit the constants, and say how far off they are."""
    figures = [*FIGURES, *WHAT_IF]
    results = run_rows([figure.row for figure in figures], out / "validation.json", keep=keep)
    constants = fit(figures, results)
    text = _report(figures, results, constants)
    (out / "validation.md").write_text(text)
    print(text)


def work_of(result: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds at an efficiency of 1, steps, and requests scheduled."""
    parts = result["parts"]
    return sum(parts[name] for name in _AT_UNIT), parts["step_s"], parts["requests_s"]


def launches_of(result: dict[str, Any]) -> float:
    """Seconds of waiting for launches, at the efficiency in use."""
    share = UNIT.efficiency / PUBLISHED.efficiency
    return float(result["parts"]["launch_s"]) * share


def fit(figures: Sequence[Published], results: Sequence[dict[str, Any]]) -> Constants:
    """Least squares of the relative error over the figures that are for fitting."""
    fitted = [
        (figure.requests_per_s / figure.row.num_requests, result)
        for figure, result in zip(figures, results, strict=True)
        if figure.is_fitted and figure.requests_per_s
    ]
    matrix = np.array([np.array(work_of(result)) * share for share, result in fitted])
    rest = np.array([1 - launches_of(result) * share for share, result in fitted])
    scale = matrix.max(axis=0)
    matrix = matrix / scale
    solution = solve_nonnegative(matrix.T @ matrix, matrix.T @ rest) / scale
    return Constants(1 / float(solution[0]), float(solution[1]), float(solution[2]))


def speed(figure: Published, result: dict[str, Any], constants: Constants) -> float:
    """Requests a second with these constants."""
    at_unit, steps, requests = work_of(result)
    seconds = (
        at_unit / constants.efficiency + steps * constants.step_s + requests * constants.request_s
    )
    seconds += launches_of(result)
    return figure.row.num_requests / seconds


def _report(
    figures: Sequence[Published], results: Sequence[dict[str, Any]], constants: Constants
) -> str:
    pairs = list(zip(figures, results, strict=True))
    rows = [_line(figure, result, constants) for figure, result in pairs]
    held_out = [
        abs(speed(figure, result, constants) / figure.requests_per_s - 1)
        for figure, result in pairs
        if figure.requests_per_s and not figure.is_fitted and figure not in WHAT_IF
    ]
    header = (
        "figure",
        "used for",
        "published, req/s",
        "simulated",
        "error",
        "saved, published",
        "simulated",
    )
    return (
        "# The cost model against published figures\n\n"
        "`python benchmarks/paper/validate.py --out benchmarks/results/paper`\n\n"
        f"Fitted on the rows marked so: efficiency {constants.efficiency:.3f}, "
        f"{constants.step_s * 1e3:.2f} ms a step, {constants.request_s * 1e6:.1f} µs a request "
        f"scheduled (in use: {PUBLISHED.efficiency:.3f}, {PUBLISHED.step_s * 1e3:.2f} ms, "
        f"{PUBLISHED.request_s * 1e6:.1f} µs). Mean error of the speeds that were held out: "
        f"{np.mean(held_out):.0%}, median {np.median(held_out):.0%}.\n\n" + table(header, rows)
    )


def _line(figure: Published, result: dict[str, Any], constants: Constants) -> list[str]:
    simulated = speed(figure, result, constants)
    wanted, saved = figure.requests_per_s, figure.saved_ratio
    use = "what if" if figure in WHAT_IF else "fit" if figure.is_fitted else "test"
    return [
        figure.row.label,
        use if wanted else "saving only",
        f"{wanted:.2f}" if wanted else "–",
        f"{simulated:.2f}",
        f"{simulated / wanted - 1:+.0%}" if wanted else "–",
        f"{saved:.1%}" if saved is not None else "–",
        f"{result['metrics']['saved_ratio']:.1%}",
    ]


if __name__ == "__main__":
    typer.run(main)
