# SPDX-License-Identifier: Apache-2.0
"""A real server under abuse: what was sent, answered, refused, aborted, lost; blocks leaked.

    python benchmarks/live/abuse.py --out benchmarks/results/server/abuse.json
    python benchmarks/live/abuse.py --preempting --out benchmarks/results/server/preempting.json

Lost is what was neither answered in full, nor refused with a reason, nor given up by its client.
After every phase the queue, the forests, the block pool and the admission are checked inside the
engine process, and the metrics against what the clients saw. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from abuse_clients import Tally
from abuse_phases import PHASES, Abuse
from live_server import MODEL, LiveServer, serving

OURS = "vllm_batchllm:"
SAME_COUNTERS = {
    "steps": "num_steps",
    "scheduled_tokens": "num_scheduled_tokens",
    "admitted_requests": "num_admitted",
    "prompt_tokens": "prompt_tokens",
    "admission_hit_tokens": "admission_hit_tokens",
    "preemptions": "num_preemptions",
    "ended_requests": "num_ended",
    "real_output_tokens": "real_tokens",
    "needed_blocks_lost": "num_needed_lost",
}
"""Families of ours, and the counter in the engine process that each must equal at rest."""
LONGER = 4
"""Multiple of the first phase's output in a run with preemptions: requests have to grow."""
PREEMPTING = ["--num-gpu-blocks-override", "32"]
"""Words of a server that preempts: a third more memory than one request can take, and with our
scheduler vLLM's rule of admission, as ours avoids what is to be shown."""
PREEMPTING += ["--additional-config", json.dumps({"batchllm": {"admission": "stock"}})]


async def abuse(
    server: LiveServer, scale: float, seed: int = 0, longer: int = 1, knows_hints: bool = True
) -> dict[str, Any]:
    """All phases, SIGTERM last; figures by phase, sums, and every problem found."""
    raise_file_limit()
    run = Abuse(server, scale, seed, longer, knows_hints)
    phases: dict[str, Any] = {}
    num_aborted = 0
    try:
        before = await asyncio.to_thread(server.metrics)
        for phase in PHASES:
            began = time.monotonic()
            tally = await phase(run)
            at_rest = await asyncio.to_thread(server.wait_until_idle)
            after = await asyncio.to_thread(server.metrics)
            tally.problems += rest_problems(at_rest) + metric_problems(before, after, at_rest)
            num_aborted += tally.count("aborted")
            tally.problems += preemption_problems(after, num_aborted)
            if phase is Abuse.mixed:
                has_admission = "admitted" in at_rest
                tally.problems += exact_problems(before, after, tally, has_admission)
            else:
                tally.problems += outcome_problems(before, after, tally)
            phases[phase.__name__] = tally.to_dict() | {
                "leaked_blocks": at_rest["blocks_held"],
                "wall_s": round(time.monotonic() - began, 1),
            }
            before = after
        began = time.monotonic()
        tally = await run.terminated()
        tally.problems += log_problems(server)
        phases["terminated"] = tally.to_dict() | {"wall_s": round(time.monotonic() - began, 1)}
    finally:
        await run.close()
    return summary(phases) | {"phases": phases, "sizes_at_rest": at_rest, "metrics": clip(after)}


def summary(phases: dict[str, Any]) -> dict[str, Any]:
    """Sums over the phases."""
    names = ("sent", "answered", "refused", "aborted", "lost", "leaked_blocks")
    sums = {name: sum(phase.get(name, 0) for phase in phases.values()) for name in names}
    problems = [f"{name}: {p}" for name, phase in phases.items() for p in phase["problems"]]
    return {"total": sums, "problems": problems}


def rest_problems(at_rest: dict[str, Any]) -> list[str]:
    """What is left in the engine although no request is."""
    problems = list(at_rest["problems"])
    for name in ("requests", "waiting", "running", "blocks_held"):
        if at_rest[name]:
            problems.append(f"{at_rest[name]} {name} left at rest")
    for name in ("forest_requests", "forest_nodes", "heap_entries", "filed_blocks", "admitted"):
        if at_rest.get(name):
            problems.append(f"{at_rest[name]} {name} left at rest")
    return problems


def metric_problems(
    before: dict[str, float], after: dict[str, float], at_rest: dict[str, Any]
) -> list[str]:
    """Counters that fell, gauges that do not know of the rest, figures that disagree."""
    fallen = [n for n in before if n.endswith("_total") and after.get(n, 0.0) < before[n]]
    problems = [f"{name} fell" for name in fallen]
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
        if after[name]:
            problems.append(f"{name} is {after[name]:g} at rest")
    if "counters" not in at_rest:  # vLLM's own scheduler
        return problems
    for family, counter in SAME_COUNTERS.items():
        shown_value, real = after[f"{OURS}{family}_total"], at_rest["counters"][counter]
        if shown_value != real:
            problems.append(f"{OURS}{family} shows {shown_value:g}, the engine counted {real}")
    return problems


def preemption_problems(after: dict[str, float], num_aborted: int) -> list[str]:
    """Our preemptions are vLLM's, and those that it tells of with a request's next output: of one
    that is given up before, it never does."""
    ours, theirs = after.get(f"{OURS}preemptions_total"), after["vllm:num_preemptions_total"]
    if ours is None or ours == theirs or (theirs < ours and num_aborted):
        return []
    return [f"preemptions: {ours:g}, vLLM says {theirs:g}"]


def exact_problems(
    before: dict[str, float], after: dict[str, float], tally: Tally, has_admission: bool = True
) -> list[str]:
    """Where every request was answered, tokens and requests must add up exactly.

    has_admission: whether lengths are predicted, and so compared.
    """
    replies = tally.replies
    wanted = {
        "vllm:request_success_total": len(replies),
        "vllm:prompt_tokens_total": sum(reply.prompt_tokens for reply in replies),
        "vllm:generation_tokens_total": sum(reply.output_tokens for reply in replies),
        f"{OURS}admitted_requests_total": len(replies),
        f"{OURS}prompt_tokens_total": sum(reply.prompt_tokens for reply in replies),
    }
    if has_admission:
        wanted[f"{OURS}lengths_compared_total"] = len(replies)
        wanted[f"{OURS}real_output_tokens_total"] = sum(reply.output_tokens for reply in replies)
    changes = {name: after[name] - before.get(name, 0.0) for name in wanted if name in after}
    return [
        f"{name} grew by {changes[name]:g}, the clients saw {wanted[name]}"
        for name in changes
        if changes[name] != wanted[name]
    ]


def outcome_problems(before: dict[str, float], after: dict[str, float], tally: Tally) -> list[str]:
    """vLLM must have finished what was answered, and not more than that and what was aborted."""
    name = "vllm:request_success_total{%s}"
    ended = sum(
        after.get(name % reason, 0.0) - before.get(name % reason, 0.0)
        for reason in ("stop", "length", "repetition")
    )
    answered, aborted = tally.count("answered"), tally.count("aborted")
    if answered <= ended <= answered + aborted:
        return []
    return [f"vLLM finished {ended:g} requests, {answered} were answered and {aborted} aborted"]


def log_problems(server: LiveServer) -> list[str]:
    """Processes that outlived the server, and an engine that died, by its log."""
    number = server.num_survivors
    problems = [f"{number} processes outlived the server"] if number else []
    text = server.log.read_text(errors="replace")
    before_the_end = text.partition("[shutdown]")[0]
    if "EngineDeadError" in before_the_end or "EngineCore encountered a fatal error" in text:
        problems.append("the engine died")  # behind SIGTERM vLLM's front end may find it gone
    if "EngineCore: request processing complete" not in text:
        problems.append("the engine did not end of itself")
    return problems


def clip(metrics: dict[str, float]) -> dict[str, float]:
    """Our metrics and the requests that vLLM finished."""
    wanted = (OURS, "vllm:request_success_total", "vllm:num_preemptions_total")
    return {
        n: v for n, v in sorted(metrics.items()) if n.startswith(wanted) and "_created" not in n
    }


def preemptions(figures: dict[str, Any]) -> float:
    """Requests that were sent back to wait, all in all, as vLLM counts them."""
    return float(figures["metrics"].get("vllm:num_preemptions_total", 0.0))


def raise_file_limit() -> None:
    """As many open files as are allowed: every connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
    scale: Annotated[float, typer.Option(min=0.01, help="1 is the full size")] = 1.0,
    scheduler: Annotated[str, typer.Option(help="batchllm, or stock to compare")] = "batchllm",
    model: Annotated[Path, typer.Option(help="folder of a model")] = MODEL,
    seed: Annotated[int, typer.Option()] = 0,
    preempting: Annotated[
        bool, typer.Option(help="hardly any memory, vLLM's rule of admission")
    ] = False,
) -> None:
    """Start a server, abuse it, print the figures as JSON."""
    words = ["--shutdown-timeout", "300"]
    if preempting:
        words += PREEMPTING if scheduler == "batchllm" else PREEMPTING[:2]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(model, Path(folder), *words, scheduler=scheduler) as server,
    ):
        longer, is_ours = LONGER if preempting else 1, scheduler == "batchllm"
        figures = asyncio.run(abuse(server, scale, seed, longer, is_ours))
    how = {"scheduler": scheduler, "scale": scale, "seed": seed, "preempting": preempting}
    figures = how | {"preemptions": preemptions(figures)} | figures
    if preempting and not figures["preemptions"]:
        figures["problems"].append("nothing was preempted")
    text = json.dumps(figures, indent=1) + "\n"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    print(text)
    total = figures["total"]
    sys.exit(1 if figures["problems"] or total["lost"] or total["leaked_blocks"] else 0)


if __name__ == "__main__":
    typer.run(main)
