# SPDX-License-Identifier: Apache-2.0
"""A million lines for 256 replicas: seconds and memory that the driver spends beyond the text plan.

    python benchmarks/replicas/planning.py --out benchmarks/results/replicas

Reads and plans a real input, cuts it, and hands all of it out in the pieces and with the thefts of replicas whose speeds differ by
a factor of two, without engines. Writes `planning.json` and `planning.md`. Nothing else should run.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))

from scale import import_as_the_command_does, peak_mb, write_input

PIECE = 256


def hand_out(assignment: Any, work: Any, num_replicas: int) -> float:
    """Simulated seconds until the last replica ends; each asks for more when it has done what it had."""
    draw = random.Random(0)
    speeds = {replica: draw.uniform(0.5, 1.0) for replica in range(num_replicas)}
    for replica, speed in speeds.items():
        assignment.set_speed(replica, speed)
    clock = [(0.0, replica) for replica in range(num_replicas)]
    end_s = 0.0
    while clock:
        now_s, replica = heapq.heappop(clock)
        assignment.set_backlog(replica, 0.0, now_s)
        items = assignment.take(replica, PIECE, now_s)
        if not items:
            continue
        ready_s = now_s + float(work[items].sum()) / speeds[replica]
        end_s = max(end_s, ready_s)
        heapq.heappush(clock, (ready_s, replica))
    return end_s / (float(work.sum()) / sum(speeds.values()))


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    num_lines: int = 1_000_000,
    num_replicas: int = 256,
) -> None:
    """Plan, cut, hand out; write down what it took."""
    import_as_the_command_does()
    from vllm_batchllm.jobs.session import JobSession, SessionSettings
    from vllm_batchllm.plan.line_costs import costs_of
    from vllm_batchllm.replicas.assignment import Assignment

    with TemporaryDirectory() as name:
        path = Path(name) / "in.jsonl"
        write_input(path, num_lines, 1000)
        imported_mb, began = peak_mb(), time.monotonic()
        session = JobSession.open(path, Path(name) / "out.jsonl", SessionSettings({"model": "m"}))
        planned_s, planned_mb = time.monotonic() - began, peak_mb()
        began = time.monotonic()
        lines, new_bytes = session.lines_left()
        costs = costs_of(session.source.text_bytes[lines], new_bytes)
        assignment = Assignment(costs, list(range(num_replicas)))
        cut_s, cut_work = time.monotonic() - began, assignment.cut_work
        began = time.monotonic()
        over_ideal = hand_out(assignment, costs.work, num_replicas)
        handed_s = time.monotonic() - began
        assert assignment.num_left == 0
        session.close()
    found = {
        "lines": num_lines,
        "replicas": num_replicas,
        "text plan, s": round(planned_s, 1),
        "cut, s": round(cut_s, 2),
        "all pieces and thefts handed out, s": round(handed_s, 1),
        "memory after imports, MB": round(imported_mb),
        "memory after the text plan, MB": round(planned_mb),
        "memory at the end, MB": round(peak_mb()),
        "prefix tokens of the first cuts": round(cut_work),
        "prefix tokens of all cuts": round(assignment.cut_work),
        "thefts": assignment.num_stolen,
        "end of the last replica over the ideal": round(over_ideal, 4),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "planning.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = "\n".join(f"| {key} | {value:,} |" for key, value in found.items())
    text = (
        "# Planning for many replicas\n\n    python benchmarks/replicas/planning.py --out benchmarks/results/replicas\n\n"
        f"Lines of 1 kB in groups of 16; replicas whose speeds differ by up to a factor of 2.\n\n| what | |\n| --- | ---: |\n{rows}\n"
    )
    (out / "planning.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
