# SPDX-License-Identifier: Apache-2.0
"""When to release a batch: the reference table, and what the abstract cost of overflow saves.

    python benchmarks/online/release_reference.py --out benchmarks/results/online

The server is GoogLeNet on a P4 (arXiv 2501.02181, section VI). Writes `release_reference.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads cost more than they bring here

from vllm_batchllm.admission.release_policy import always, evaluate, greedy
from vllm_batchllm.admission.release_server import BatchServer
from vllm_batchllm.admission.release_simulation import simulate_release
from vllm_batchllm.admission.release_solver import solve, solve_by_values

Row = dict[str, Any]

MAX_BATCH, OVERFLOW_COST = 32, 100.0
LOADS, WEIGHTS = (0.3, 0.7, 0.9), (0, 1, 3)
SIMULATED_MS = 4e5
CLOSE = 0.005
"""How near a cost must be to the converged one, relative."""

MOST_STATES = 256
REPEATS = 5


def googlenet(load: float, w_power: float) -> BatchServer:
    """Milliseconds 1.0524 + 0.3051 b, millijoules 19.603 + 19.899 b for a batch of b."""
    rate = 1e3 * load * MAX_BATCH / (1.0524 + 0.3051 * MAX_BATCH)
    return BatchServer.affine(rate, (1.0524, 0.3051), (19.603, 19.899), MAX_BATCH, w_power=w_power)


def timed_ms(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def reference_row(load: float, w_power: float) -> Row:
    """The best policy, exact and simulated, beside rules of fixed size."""
    server = googlenet(load, w_power)
    policy = solve(server, 128, OVERFLOW_COST)
    simulated = simulate_release(server, policy, SIMULATED_MS)
    return {
        "load": load,
        "w_power": w_power,
        "cost": policy.cost,
        "simulated_cost": simulated.cost,
        "simulated_error": simulated.cost_error,
        "mean_response_ms": policy.mean_response_ms,
        "power_w": policy.power_w,
        "control_limit": policy.control_limit,
        "greedy": finite(greedy(server).cost),
        "batches_of_8": finite(always(server, 8).cost),
        "batches_of_32": finite(always(server, 32).cost),
        "solve_ms": timed_ms(lambda: solve(server, 128, OVERFLOW_COST)),
    }


def truncation_row(num_states: int, overflow_cost: float) -> Row:
    """What a truncation says of load 0.9 and w_power 1, and what its table truly costs."""
    server = googlenet(0.9, 1)
    policy = solve(server, num_states, overflow_cost)
    return {
        "states": num_states,
        "overflow_cost": overflow_cost,
        "model_cost": policy.model_cost,
        "table_cost": evaluate(server, policy.batch_of, 512).cost,
        "control_limit": policy.control_limit,
    }


def saving_row(load: float, w_power: float) -> Row:
    """Fewest states whose cost, and that of all more states, is close to the converged one; time of both."""
    server = googlenet(load, w_power)
    converged = solve(server).cost
    row: Row = {"load": load, "w_power": w_power, "converged": converged}
    for name, overflow_cost in (("without", 0.0), ("with", OVERFLOW_COST)):
        states = fewest_states(server, overflow_cost, converged)
        found = solve_by_values(server, states, overflow_cost)
        row[name] = {
            "states": states,
            "rounds": found.num_rounds,
            "is_settled": found.is_settled,
            "values_ms": timed_ms(
                lambda s=states, c=overflow_cost: solve_by_values(server, s, c), 3
            ),
            "policy_ms": timed_ms(lambda s=states, c=overflow_cost: solve(server, s, c)),
        }
    for what in ("states", "values_ms"):
        row[f"{what}_saved_ratio"] = 1 - row["with"][what] / row["without"][what]
    return row


def fewest_states(server: BatchServer, overflow_cost: float, converged: float) -> int:
    """Counted down from MOST_STATES to the first that is not close."""
    for states in range(MOST_STATES, MAX_BATCH - 1, -1):
        if abs(solve(server, states, overflow_cost).model_cost / converged - 1) > CLOSE:
            return states + 1
    return MAX_BATCH


def finite(cost: float) -> float | None:
    """None for a rule that does not keep up; JSON has no infinity."""
    return cost if math.isfinite(cost) else None


def cost_text(cost: float | None) -> str:
    return "does not keep up" if cost is None else f"{cost:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def reference_table(rows: Sequence[Row]) -> str:
    header = ("load", "w_power", "cost", "simulated", "response, ms", "power, W", "control limit",
              "greedy", "batches of 8", "batches of 32", "solved in, ms")  # fmt: skip
    return table(
        header,
        [
            (
                row["load"],
                row["w_power"],
                f"{row['cost']:.3f}",
                f"{row['simulated_cost']:.3f} ± {row['simulated_error']:.3f}",
                f"{row['mean_response_ms']:.2f}",
                f"{row['power_w']:.2f}",
                row["control_limit"],
                *(cost_text(row[name]) for name in ("greedy", "batches_of_8", "batches_of_32")),
                f"{row['solve_ms']:.1f}",
            )
            for row in rows
        ],
    )


def truncation_table(rows: Sequence[Row]) -> str:
    header = (
        "states",
        "abstract cost",
        "cost by its model",
        "true cost of its table",
        "control limit",
    )
    return table(
        header,
        [
            (
                row["states"],
                f"{row['overflow_cost']:g}",
                f"{row['model_cost']:.3f}",
                f"{row['table_cost']:.3f}",
                row["control_limit"],
            )
            for row in rows
        ],
    )


def saving_table(rows: Sequence[Row]) -> str:
    header = ("load", "w_power", "states without", "with", "saved", "value iteration without, ms",
              "with", "saved", "policy iteration without, ms", "with")  # fmt: skip
    return table(
        header,
        [
            (
                row["load"],
                row["w_power"],
                row["without"]["states"],
                row["with"]["states"],
                f"{row['states_saved_ratio']:.1%}",
                values_text(row["without"]),
                values_text(row["with"]),
                f"{row['values_ms_saved_ratio']:.1%}",
                f"{row['without']['policy_ms']:.1f}",
                f"{row['with']['policy_ms']:.1f}",
            )
            for row in rows
        ],
    )


def values_text(side: Row) -> str:
    """Time of value iteration, in ms."""
    ended = "" if side["is_settled"] else f", not settled in {side['rounds']:,} rounds"
    return f"{side['values_ms']:.1f}{ended}"


def page(found: dict[str, list[Row]]) -> str:
    """All tables as Markdown."""
    return f"""# When to release a batch

`python benchmarks/online/release_reference.py --out benchmarks/results/online`

Milliseconds 1.0524 + 0.3051 b, millijoules 19.603 + 19.899 b, at most 32 in a batch, w_latency 1, 128 states, abstract cost
{OVERFLOW_COST:g}. Simulated: {SIMULATED_MS:g} ms of arrivals, with the 95 % confidence interval.

{reference_table(found["reference"])}

Load 0.9, w_power 1, at various truncations:

{truncation_table(found["truncation"])}

Fewest states from which on the cost is within {CLOSE:.1%} of the converged one, without an abstract cost and with it
({MAX_BATCH} are the least there can be), and the time of value iteration at each, beside policy iteration. Published, for a
case of its own: 63.5 % of the states and 98 % of the time saved.

{saving_table(found["saving"])}
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    out: Path = parser.parse_args(argv).out
    cases = [(load, weight) for load in LOADS for weight in WEIGHTS]
    truncations = [
        (40, OVERFLOW_COST),
        (160, OVERFLOW_COST),
        *((n, 0.0) for n in (40, 64, 96, 160)),
    ]
    found = {
        "reference": [reference_row(*case) for case in cases],
        "truncation": [truncation_row(*case) for case in truncations],
        "saving": [saving_row(*case) for case in cases],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "release_reference.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "release_reference.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
