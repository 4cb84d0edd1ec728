# SPDX-License-Identifier: Apache-2.0
"""Mixed online load on a real server for minutes: memory stays flat, and nothing piles up.

    python benchmarks/live/soak.py --minutes 10 --out results/soak

Every two seconds the engine process says how much memory it has and how many entries its queue,
forests, estimator and block pool hold. Writes soak.json and soak.png. Exit code 1 if memory after
the warm-up grows by more than 5 %, if anything grows once the load has ended, or if a request was
lost.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from abuse import metric_problems, raise_file_limit, rest_problems
from live_server import MODEL, LiveServer, serving, small_model
from soak_load import Load

PERIOD_S = 2.0
WARM_UP_SHARE = 0.2
MAX_GROWTH = 0.05
REST_S = 10.0
"""How long the server is watched after the load has ended."""

OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "1024"),
    *("--max-num-seqs", "32", "--num-gpu-blocks-override", "160"),
    *("--scheduling-policy", "priority", "--disable-uvicorn-access-log"),
)
BOUNDED = {"priorities": 512}
"""Entries that may stay when all requests have left, and how many at most."""


async def sample(server: LiveServer, samples: list[dict[str, Any]], began_s: float) -> None:
    """Ask the engine process for its figures for ever."""
    while True:
        figures = await asyncio.to_thread(server.probe)
        del figures["counters"]
        samples.append({"t": round(time.monotonic() - began_s, 2)} | figures)
        await asyncio.sleep(PERIOD_S)


async def soak(server: LiveServer, minutes: float, clients: int, seed: int) -> dict[str, Any]:
    """Load the server; what happened, with every problem found."""
    samples: list[dict[str, Any]] = []
    load = Load(server.url, clients, seed)
    before = await asyncio.to_thread(server.metrics)
    began_s = time.monotonic()
    sampling = asyncio.create_task(sample(server, samples, began_s))
    await load.run(minutes * 60)
    load_s = time.monotonic() - began_s
    stopped = await asyncio.to_thread(server.wait_until_idle)
    await asyncio.sleep(REST_S)
    sampling.cancel()
    at_rest = await asyncio.to_thread(server.probe)
    after = await asyncio.to_thread(server.metrics)
    memory = memory_figures(samples, load_s)
    problems = rest_problems(at_rest) + metric_problems(before, after, at_rest)
    problems += growth_problems(stopped, at_rest) + [f"lost: {case}" for case in load.lost]
    problems += [f"at {s['t']} s: {p}" for s in samples for p in s["problems"]]
    if memory["growth"] > MAX_GROWTH:
        problems.append(f"memory grew by {memory['growth']:.1%} after the warm-up")
    return {
        "minutes": minutes,
        "clients": clients,
        "seed": seed,
        "requests": dict(sorted(load.counts.items())),
        "num_requests": load.counts.total(),
        "memory": memory,
        "load_s": round(load_s, 1),
        "problems": problems,
        "at_rest": at_rest,
        "samples": samples,
    }


def memory_figures(samples: list[dict[str, Any]], load_s: float) -> dict[str, float]:
    """Memory of the engine process under load: first and last tenth behind the warm-up, MB."""
    kept = [s for s in samples if WARM_UP_SHARE * load_s <= s["t"] <= load_s]
    tenth = max(len(kept) // 10, 1)
    start, end = (
        statistics.median(s["rss"] for s in part) / 1e6 for part in (kept[:tenth], kept[-tenth:])
    )
    hours = np.array([s["t"] for s in kept]) / 3600
    slope = np.polyfit(hours, [s["rss"] / 1e6 for s in kept], 1)[0] if len(kept) > 1 else 0.0
    return {
        "first_mb": round(samples[0]["rss"] / 1e6, 1),
        "start_mb": round(start, 1),
        "end_mb": round(end, 1),
        "growth": round(end / start - 1, 4),
        "slope_mb_per_hour": round(float(slope), 1),
    }


def growth_problems(stopped: dict[str, Any], at_rest: dict[str, Any]) -> list[str]:
    """What grew although nobody asked anything, or is more than may ever stay."""
    sizes = [name for name in at_rest if name in stopped and isinstance(at_rest[name], int)]
    watched = [name for name in sizes if name not in ("pid", "rss", "front_rss")]
    problems = [
        f"{name} grew from {stopped[name]} to {at_rest[name]} at rest"
        for name in watched
        if at_rest[name] > stopped[name]
    ]
    return problems + [
        f"{at_rest[name]} {name}, more than {most}"
        for name, most in BOUNDED.items()
        if at_rest[name] > most
    ]


def plot(figures: dict[str, Any], path: Path) -> None:
    """Memory, and the sizes of what requests fill, over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = figures["samples"]
    minutes = [s["t"] / 60 for s in samples]
    panels = {
        "engine process, MB": {"resident memory": [s["rss"] / 1e6 for s in samples]},
        "requests": {name: [s[name] for s in samples] for name in ("waiting", "running")},
        "forest": {name: [s[name] for s in samples] for name in ("forest_nodes", "heap_entries")},
        "kept": {name: [s[name] for s in samples] for name in ("origin_hashes", "blocks_held")},
    }
    figure = Figure(figsize=(9, 11), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(panels), sharex=True)
    for axes, (title, lines) in zip(rows, panels.items(), strict=True):
        for name, values in lines.items():
            axes.plot(minutes, values, label=name.replace("_", " "), linewidth=1)
        axes.set_ylabel(title)
        axes.set_ylim(0, 1.25 * max(map(max, lines.values())) or 1)
        axes.axvspan(0, WARM_UP_SHARE * figures["load_s"] / 60, color="#00000010")
        axes.axvline(figures["load_s"] / 60, color="#8a8f98", linewidth=0.8)
        axes.legend(loc="upper right", fontsize="small", ncols=len(lines))
    axes.set_xlabel("minutes; grey: warm-up; line: end of the load")
    figure.savefig(path, dpi=110)


def columns(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The samples by figure; without what is the same in all."""
    names = [name for name in samples[0] if name not in ("pid", "blocks", "problems")]
    return {name: [sample[name] for sample in samples] for name in names}


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="length of the load")] = 10.0,
    out: Annotated[Path, typer.Option(help="folder for soak.json and soak.png")] = Path(
        "results/soak"
    ),
    clients: Annotated[int, typer.Option(min=1, help="clients at once")] = 48,
    seed: Annotated[int, typer.Option()] = 0,
    real_model: Annotated[
        bool, typer.Option(help="SmolLM2 instead of a small random model")
    ] = False,
) -> None:
    """Start a server, load it, write what happened."""
    raise_file_limit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = MODEL if real_model else small_model(folder)
        with serving(model, folder, options=OPTIONS) as server:
            figures = asyncio.run(soak(server, minutes, clients, seed))
    out.mkdir(parents=True, exist_ok=True)
    plot(figures, out / "soak.png")
    text = json.dumps(figures | {"samples": columns(figures["samples"])}, indent=1)
    (out / "soak.json").write_text(re.sub(r",\n +(?=[\d-])", ", ", text) + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "samples"}, indent=1))
    sys.exit(1 if figures["problems"] else 0)


if __name__ == "__main__":
    typer.run(main)
