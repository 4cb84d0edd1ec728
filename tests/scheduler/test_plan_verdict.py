# SPDX-License-Identifier: Apache-2.0
"""The verdict of a plan on files whose right verdict is known, held against the real schedulers on the same batch."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from plan_model import save_model, write_lines

from vllm_batchllm.hardware.devices import DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.plan import command
from vllm_batchllm.plan.verdict import Evidence, Verdict, judge
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.cost_model import Constants, Roofline
from vllm_batchllm.simulate.run import run_arm
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.simulate.suite import simulate
from vllm_batchllm.workloads.batch import Batch

BLOCK = 16
DEVICE = ("--device", "A100-80GB", "--model-shape", "Llama-3.1-8B")


@dataclass(frozen=True)
class Case:
    """Groups of prompts that share `prefix` tokens, shuffled; kv_blocks: of the cache."""

    groups: int
    size: int
    prefix: int
    own: int
    output: int
    kv_blocks: int

    def batch(self) -> Batch:
        draw = random.Random(0)
        prompts = []
        for _ in range(self.groups):
            shared = [draw.randrange(4, 4000) for _ in range(self.prefix)]
            for _ in range(self.size):
                prompts.append(shared + [draw.randrange(4, 4000) for _ in range(self.own)])
        draw.shuffle(prompts)
        return Batch("drawn", prompts, [self.output] * len(prompts), kv_blocks=1000)


FITS = Case(8, 10, 96, 16, 4, 2000)
SORTED = Case(120, 4, 256, 16, 1, 320)
OUTPUTS = Case(10, 12, 256, 32, 64, 240)
NOTHING = Case(80, 1, 96, 16, 4, 60)


def planned(folder: Path, batch: Batch, *options: object) -> dict[str, Any]:
    file = write_lines(
        folder / "batch.jsonl",
        [
            {"prompt_token_ids": prompt, "max_tokens": length}
            for prompt, length in zip(batch.prompts, batch.output_lens, strict=True)
        ],
    )
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("plan")(command.plan)
    model = save_model(folder / "model")
    arguments = ["plan", str(file), "--model", model, "--json", *map(str, options)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


@cache
def saved(case: Case, arm: str) -> float:
    """What the real scheduler saves, what is computed again taken off."""
    batch = case.batch()
    sizes = EngineSizes(case.kv_blocks, BLOCK, 256, 256, 8192)
    costs = Roofline(
        DEVICES["A100-80GB"], MODELS["Llama-3.1-8B"], Constants(0.6, step_s=1e-3, request_s=1e-4)
    )
    best = optimal_saved_tokens(batch.prompts, BLOCK)
    metrics = run_arm(batch, find_arm(arm), sizes, costs, best).metrics
    return 1 - metrics.computed_prompt_tokens / batch.prompt_tokens


def verdict_of(folder: Path, case: Case) -> tuple[str, str, float]:
    plan = planned(folder, case.batch(), "--kv-blocks", case.kv_blocks)
    return plan["verdict"], plan["verdict_reason"], plan["optimal_saved_ratio"]


def test_everything_fits(tmp_path: Path) -> None:
    verdict, reason, best = verdict_of(tmp_path, FITS)
    assert verdict == Verdict.STOCK_IS_ENOUGH
    assert reason.startswith("everything fits: stock saves all of it already, no gain")
    assert saved(FITS, "stock") == pytest.approx(best, abs=0.01)


def test_sorting_is_enough(tmp_path: Path) -> None:
    verdict, reason, best = verdict_of(tmp_path, SORTED)
    assert verdict == Verdict.SORTING_IS_ENOUGH and "sorting it gets you all" in reason
    assert saved(SORTED, "stock") < best - 0.3
    assert saved(SORTED, "sorted") == pytest.approx(best, abs=0.01)


def test_outputs_that_push_requests_out(tmp_path: Path) -> None:
    verdict, reason, best = verdict_of(tmp_path, OUTPUTS)
    assert verdict == Verdict.PLUGIN_PAYS and "that sorting does not" in reason
    lost = best - saved(OUTPUTS, "sorted")
    told = float(reason.partition("up to ")[2].partition("%")[0]) / 100
    assert told == pytest.approx(lost, abs=0.05)
    assert saved(OUTPUTS, "batchllm") > saved(OUTPUTS, "sorted") + 0.03


def test_nothing_shared(tmp_path: Path) -> None:
    verdict, reason, best = verdict_of(tmp_path, NOTHING)
    assert (verdict, reason, best) == ("nothing-shared", "nothing is shared: no gain", 0.0)
    assert saved(NOTHING, "batchllm") == pytest.approx(0.0, abs=0.01)


def test_shared_attention_pays(tmp_path: Path) -> None:
    batch = Case(4, 64, 3072, 16, 64, 0).batch()
    plan = planned(tmp_path, batch, *DEVICE)
    assert plan["verdict"] == Verdict.KERNEL_PAYS
    bounds = plan["verdict_reason"].partition("another ")[2].partition("x")[0].split(" to ")
    setup = make_setup(batch, SetupOptions(device="A100-80GB", model="Llama-3.1-8B"))
    blocks = setup.sizes.num_blocks
    assert plan["first_come"]["num_kv_blocks"] == pytest.approx(blocks, rel=0.01)
    found = simulate(batch, [find_arm("batchllm")], setup, compare_attention=True)
    ours, fast, cached, slow = (run.metrics.makespan_s for run in found.runs)
    assert [float(bound) for bound in bounds] == pytest.approx(
        [cached / slow, ours / fast], rel=0.2
    )


def test_rules_alone() -> None:
    assert judge(Evidence(0.005, 0.0, 0.0)).verdict is Verdict.NOTHING_SHARED
    assert judge(Evidence(0.8, 0.795, 0.8)).verdict is Verdict.STOCK_IS_ENOUGH
    assert judge(Evidence(0.8, 0.2, 0.8)).verdict is Verdict.SORTING_IS_ENOUGH
    assert judge(Evidence(0.8, 0.2, 0.4)).verdict is Verdict.PLUGIN_PAYS
    assert judge(Evidence(0.8, 0.8, 0.8, 0.9)).verdict is Verdict.KERNEL_PAYS
    assert judge(Evidence(0.8, 0.8, 0.8, 0.9, (1.0, 1.05))).verdict is Verdict.STOCK_IS_ENOUGH
    assert judge(Evidence(0.0, 0.0, 0.0, 0.9)).reason == "nothing is shared: no gain"
