# SPDX-License-Identifier: Apache-2.0
"""Targets of time on the real engine of this machine's CPU, with the small random model.

    python benchmarks/online/real_engine.py targets --out benchmarks/results/online
    python benchmarks/online/real_engine.py interactive --out benchmarks/results/online

Each arm has a process of its own. Writes `engine_targets.json` and `.md`, or `engine_interactive.json` and `.md`. Nothing else
should run; `--scale 0.2` only shows that it works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ARM = Path(__file__).parent / "engine_arm.py"
SMALL = 256
FIXED = (64, 128, 192, 384, 512, 2048)
RATIOS = (2.0, 4.0, 8.0)
Requests = list[list[float]]


def mixed(scale: float) -> Requests:
    """Short prompts and a few long ones, more of them than can be served. (seconds, prompt, output, priority)."""
    draw = np.random.default_rng(0)
    num = max(round(48 * scale), 10)
    at_s = np.cumsum(draw.exponential(1 / 40, num))
    lengths = [
        (int(draw.integers(1500, 3000)) if place % 8 == 7 else int(draw.integers(64, 256)))
        for place in range(num)
    ]
    return [
        [float(at), length, int(draw.integers(32, 64)), 0]
        for at, length in zip(at_s, lengths, strict=True)
    ]


def bursts(scale: float) -> Requests:
    """Interactive requests of 128 / 32 tokens, four at a time."""
    draw = np.random.default_rng(0)
    at_s = np.cumsum(draw.exponential(1.5, max(round(20 * scale), 4)))
    return [[float(at), 128, 32, 0] for at in at_s for _ in range(4)]


def backlog(scale: float) -> Requests:
    """Batch requests that are there from the start."""
    return [[0.0, 1000, 64, 1] for _ in range(max(round(60 * scale), 10))]


def run_arm(
    requests: Requests,
    *,
    size: int = 2048,
    options: dict[str, Any] | None = None,
    policy: str = "fcfs",
) -> dict[str, Any]:
    """Figures of one arm: of interactive requests (priority 0), and of the whole."""
    spec = {"requests": sorted(requests), "size": size, "options": options, "policy": policy}
    with TemporaryDirectory() as folder:
        given, result = Path(folder) / "spec.json", Path(folder) / "result.json"
        given.write_text(json.dumps(spec | {"num_warm": 8}))
        done = subprocess.run(
            [sys.executable, str(ARM), str(given), str(result)],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"an arm failed:\n{done.stderr[-4000:]}")
        found = json.loads(result.read_text())
    places = [place for place, request in enumerate(spec["requests"]) if request[3] == 0]
    firsts = [found["times_s"][place][0] - found["arrivals_s"][place] for place in places]
    gaps = np.concatenate([np.diff(found["times_s"][place]) for place in places])
    until_s = max(found["arrivals_s"])
    batch = [
        times for place, times in enumerate(found["times_s"]) if spec["requests"][place][3] > 0
    ]
    return {
        "ttft_p50_s": float(np.percentile(firsts, 50)),
        "ttft_p99_s": float(np.percentile(firsts, 99)),
        "tbt_p99_s": float(np.percentile(gaps, 99)),
        "decode_only_s": float(np.median(found["decode_s"])) if found["decode_s"] else None,
        "requests_per_s": len(found["times_s"]) / max(times[-1] for times in found["times_s"]),
        "batch_done": sum(times[-1] <= until_s for times in batch),
        "window_s": until_s,
        **found["counters"],
    }


def targets(scale: float) -> tuple[dict[str, Any], str]:
    """Ours by each target, and fixed sizes of which the best one counts."""
    requests = mixed(scale)
    small = run_arm(requests, size=SMALL)
    decode_s = small["decode_only_s"]
    fixed = {SMALL: small} | {size: run_arm(requests, size=size) for size in FIXED}
    results: dict[str, Any] = {"decode_only_s": decode_s, "fixed": fixed, "ours": {}}
    rows = ["target, ms | ours: TBT p99 | fixed: TBT p99 | ours: requests/s | fixed | fixed size"]
    rows.append("--- | --- | --- | --- | --- | ---")
    for ratio in RATIOS:
        target_s = ratio * decode_s
        ours = run_arm(requests, options={"target_tbt_ms": 1e3 * target_s})
        results["ours"][ratio] = ours
        kept = [size for size in fixed if fixed[size]["tbt_p99_s"] <= target_s]
        best = max(kept, key=lambda size: fixed[size]["requests_per_s"], default=None)
        cells = [f"{1e3 * target_s:.1f} ({ratio:g}x)", f"{1e3 * ours['tbt_p99_s']:.1f}"]
        cells.append("none" if best is None else f"{1e3 * fixed[best]['tbt_p99_s']:.1f}")
        cells.append(f"{ours['requests_per_s']:.2f}")
        cells += (
            ["none", ""] if best is None else [f"{fixed[best]['requests_per_s']:.2f}", f"{best:,}"]
        )
        rows.append(" | ".join(cells))
    intro = f"Decode-only step: {1e3 * decode_s:.1f} ms; {len(requests)} requests; fixed sizes tried: {', '.join(map(str, fixed))}."
    return results, intro + "\n\n" + "\n".join(f"| {row} |" for row in rows)


def interactive(scale: float) -> tuple[dict[str, Any], str]:
    """Interactive requests alone, and beside a batch by each arm."""
    urgent, both = bursts(scale), bursts(scale) + backlog(scale)
    alone = run_arm(urgent)
    results = {"alone": alone, "raw": run_arm(both), "priority": run_arm(both, policy="priority")}
    results["priority, fixed size 256"] = run_arm(both, policy="priority", size=256)
    for ratio in (0.5, 1.0):
        options = {"target_ttft_ms": 1e3 * ratio * alone["ttft_p99_s"]}
        name = f"ours, target {options['target_ttft_ms']:.0f} ms ({ratio:g}x)"
        results[name] = run_arm(both, policy="priority", options=options)
    rows = ["arm | TTFT p50, s | p99, s | p99 over alone | TBT p99, ms | batch done | requests/s"]
    rows.append("--- | --- | --- | --- | --- | --- | ---")
    for name, found in results.items():
        over = found["ttft_p99_s"] / alone["ttft_p99_s"]
        rows.append(
            f"{name} | {found['ttft_p50_s']:.3f} | {found['ttft_p99_s']:.3f} | {over:.2f} | {1e3 * found['tbt_p99_s']:.0f} | "
            f"{found['batch_done']} | {found['requests_per_s']:.2f}"
        )
    intro = f"Batch done: requests of the batch that ended within the {alone['window_s']:.0f} s in which interactive ones came."
    return results, intro + "\n\n" + "\n".join(f"| {row} |" for row in rows)


def main() -> None:
    """Run one of the two, and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["targets", "interactive"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    arguments = parser.parse_args()
    made = targets if arguments.what == "targets" else interactive
    results, table = made(arguments.scale)
    scale = "" if arguments.scale == 1 else f" --scale {arguments.scale:g}"
    command = f"python benchmarks/online/real_engine.py {arguments.what} --out benchmarks/results/online{scale}"
    text = f"# Targets of time on the real engine: {arguments.what}\n\n`{command}`\n\n{table}\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"engine_{arguments.what}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
