# SPDX-License-Identifier: Apache-2.0
"""A short A/B, stock against ours: whether ours runs at all, and computes less where prompts share prefixes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from vllm_batchllm.bench.engine import BATCHLLM, STOCK, EngineSpec
from vllm_batchllm.bench.engines import Engines
from vllm_batchllm.bench.pace import Progress
from vllm_batchllm.bench.runner import run_ab
from vllm_batchllm.bench.suite import WorkloadOptions, make_plan
from vllm_batchllm.doctor.finding import Finding
from vllm_batchllm.measure.metrics import ABResult

TOPIC = "A/B"
WORKLOAD = "micro-2000-200-d4"
SCALE = 16
NUM_REQUESTS = 64
ROUNDS = 3
CPU_BLOCK = 32
EXPECT = (
    "fewer prompt tokens computed where prompts that share prefixes come scattered and memory for KV is tight, as in "
    "the A/B here; with ample memory, or sorted prompts, about stock's tokens and time, no faster. The ratio of times "
    "of a small model says little about a large one's"
)
FALL_BACK = (
    "--scheduler stock, vllm.LLM in place of vllm_batchllm.LLM, or VLLM_BATCHLLM unset: then vLLM is "
    "as if the plugin were not installed"
)


def check_gain(model: str, dtype: str, vocab_size: int, *, on_cpu: bool) -> Iterator[Finding]:
    """Run the A/B, an engine for each arm, in turns; then say what came of it."""
    spec = EngineSpec(model, kv_blocks=0, max_model_len=0, block_size=CPU_BLOCK, dtype=dtype)
    drawn = WorkloadOptions(scale=SCALE, num_requests=NUM_REQUESTS)
    plan = make_plan(WORKLOAD, drawn, spec, vocab_size)
    arms = (STOCK, BATCHLLM)
    print(f"         {TOPIC}: starting two engines", file=sys.stderr, flush=True)
    with Engines.build(plan.spec, arms) as engines:  # once: a look, not a measurement
        result = run_ab(plan.spec, plan.batch, arms, ROUNDS, _tell, engines)
    yield from findings_of(result, on_cpu=on_cpu)


def findings_of(result: ABResult, *, on_cpu: bool) -> Iterator[Finding]:
    """What an A/B of the two arms says. on_cpu: answers have to be equal, token for token."""
    yield _tokens(result)
    yield _times(result)
    yield _answers(result, on_cpu)


def advice() -> Iterator[Finding]:
    """What to expect, and how to go back."""
    yield Finding("note", "what to expect", EXPECT, "vllm-batchllm plan FILE says what yours is")
    yield Finding("note", "how to fall back", FALL_BACK)


def _tokens(result: ABResult) -> Finding:
    stock, ours = (int(result.medians(arm)["computed_prompt_tokens"]) for arm in (STOCK, BATCHLLM))
    total = result.runs[0].prompt_tokens
    text = f"of {total:,} prompt tokens stock computed {stock:,}, batchllm {ours:,}"
    if ours <= stock:
        return Finding("ok", TOPIC, text)
    way = "fall back, and report it with the output of vllm-batchllm doctor --json"
    return Finding("problem", TOPIC, f"{text}: more than stock", way)


def _times(result: ABResult) -> Finding:
    ratio = result.ratio(STOCK, BATCHLLM)
    text = (
        f"stock's time / batchllm's: {ratio.median:.2f} ({ratio.min:.2f}–{ratio.max:.2f} in "
        f"{len(ratio.ratios)} rounds)"
    )
    if not ratio.shows_difference:
        return Finding("ok", TOPIC, f"{text}: no difference shown")
    if ratio.median >= 1:
        return Finding("ok", TOPIC, text)
    return Finding("note", TOPIC, f"{text}: slower here", "vllm-batchllm bench measures your model")


def _answers(result: ABResult, on_cpu: bool) -> Finding:
    match = result.match(BATCHLLM)
    text = f"{match.ratio:.1%} of {match.num_compared} answers equal stock's, token for token"
    if match.ratio == 1:
        return Finding("ok", TOPIC, text)
    way = "report it with the output of vllm-batchllm doctor --json"
    if on_cpu:
        return Finding("problem", TOPIC, text, way)
    text += "; on a GPU another order of requests rounds otherwise, and stock differs from itself"
    return Finding("note", TOPIC, text)


def _tell(progress: Progress) -> None:
    if progress.run is None and progress.stage != "starting engines":
        print(f"         {TOPIC}: {progress.stage}", file=sys.stderr, flush=True)
