# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm bench`: names, options and models are checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vllm_batchllm.bench import command, suite
from vllm_batchllm.bench.engine import EngineSpec
from vllm_batchllm.bench.report import report_from_dict
from vllm_batchllm.bench.suite import (
    SUITE,
    WorkloadOptions,
    make_plan,
    resolve_model,
    resolve_workloads,
)
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.command_line import parse_options
from vllm_batchllm.measure.metrics import (
    ABResult,
    Difference,
    OutputMatch,
    RunInputs,
    run_metrics,
)
from vllm_batchllm.measure.recorder import StepRecord
from vllm_batchllm.workloads.catalog import workload_names

ENGINE = EngineSpec(model="m", kv_blocks=0, max_model_len=0)
ARMS = ("stock", "sorted", "batchllm")

app = typer.Typer()
app.command()(command.bench)


def fake_result(name: str, differences: tuple[Difference, ...] = ()) -> ABResult:
    inputs = RunInputs(1, 10, 1, 0)
    runs = [run_metrics(arm, 0, inputs, StepRecord([10], 10), 1.0) for arm in ARMS]
    matches = tuple(OutputMatch(arm, 1, 1 - len(differences), 0, differences) for arm in ARMS)
    workload = {
        "name": name, "description": "", "seed": 0, "scale": 8.0, "num_requests": 1,
        "prompt_tokens": 10, "output_tokens": 1, "pressure": None, "block_size": 32,
    }  # fmt: skip
    return ABResult(workload, {"kv_blocks": 9}, ARMS, tuple(runs), matches)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command with its engines replaced; `outcomes` maps workloads to what they do."""
    outcomes: dict[str, Any] = {}
    calls: list[tuple[EngineSpec, Any, int]] = []

    def fake_run_ab(spec: EngineSpec, batch: Any, rounds: int, **_: Any) -> ABResult:
        calls.append((spec, batch, rounds))
        outcome = outcomes.get(batch.name, ())
        if isinstance(outcome, BaseException):
            raise outcome
        return fake_result(batch.name, outcome)

    monkeypatch.setattr(suite, "run_ab", fake_run_ab)
    monkeypatch.setattr(command, "resolve_model", lambda _: ("m", 4096))
    monkeypatch.setattr(command, "prepare_environment", lambda: True)

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])

    invoke.outcomes, invoke.calls, invoke.out = outcomes, calls, tmp_path / "out"
    return invoke


def test_names_expand_once_each() -> None:
    assert resolve_workloads(["suite"]) == list(SUITE)
    assert resolve_workloads(["all"]) == workload_names()
    assert resolve_workloads(["evals"]) == [f"multiple-choice-{n}-shot" for n in (1, 5, 25)]
    assert resolve_workloads(["industry", "micro-2000-200", "micro-2000-200-d16"]) == [
        "industry",
        "micro-2000-200-d16",
    ]


def test_options_are_json_or_text_and_checked_by_the_config() -> None:
    assert parse_options("decode-ratio", ["max_wait_s=2.5"]) == (
        ("order", "decode-ratio"),
        ("max_wait_s", 2.5),
    )
    assert parse_options(None, ["order=dfs"]) == (("order", "dfs"),)


@pytest.mark.parametrize(
    ("order", "pairs", "words"),
    [
        (None, ["max_wait_s"], "KEY=VALUE"),
        (None, ["max_wait=3"], "max_wait_s"),
        (None, ["max_wait_s=-1"], "max_wait_s"),
        ("dfs", ["order=dfs"], "twice"),
        ("bfs", [], "bfs"),
    ],
)
def test_bad_options_are_named(order: str | None, pairs: Sequence[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_options(order, pairs)


def test_a_plan_fits_the_engine_to_the_workload() -> None:
    plan = make_plan("skewed-output", WorkloadOptions(num_requests=16), ENGINE, 4096)
    assert plan.spec.kv_blocks == 372
    assert plan.spec.max_model_len == plan.batch.max_request_tokens
    assert not plan.spec.lengths_known
    sized = make_plan("industry", WorkloadOptions(num_requests=16, kv_blocks=50), ENGINE, 4096)
    assert sized.spec.kv_blocks == 50


def test_a_kv_size_below_one_request_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(UsageError, match=r"5 KV blocks .* at least 10"):
        make_plan("micro-2000-200", WorkloadOptions(kv_blocks=5), ENGINE, 4096)


def test_a_model_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot read the configuration"):
        resolve_model(str(tmp_path))


def test_a_good_run_prints_a_table_and_writes_the_report(run: Any) -> None:
    result = run("industry", "--num-requests", "16", "--rounds", "4", "--order", "decode-ratio")
    assert result.exit_code == 0, result.output
    assert "industry" in result.stdout
    spec, batch, rounds = run.calls[0]
    assert (batch.num_requests, rounds) == (16, 4)
    assert dict(spec.batchllm_options) == {"order": "decode-ratio"}
    assert (run.out / "bench.md").is_file()


def test_json_on_standard_output_is_only_the_report(run: Any) -> None:
    result = run("industry", "--num-requests", "16", "--json")
    report = report_from_dict(json.loads(result.stdout))
    assert [item.workload["name"] for item in report.results] == ["industry"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], "unknown workload 'nope'"),
        (["industry", "--rounds", "2"], "at least 3"),
        (["industry", "--option", "x"], "KEY=VALUE"),
        (["industry", "--block-size", "16"], "multiple of 32"),
        (["industry", "--scale", "0"], "scale must be above 0"),
    ],
)
def test_wrong_use_exits_with_2_and_no_traceback(
    run: Any, arguments: list[str], words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert run.calls == []


def test_quick_is_one_round_unless_told_otherwise(run: Any) -> None:
    run("industry", "--num-requests", "4", "--quick")
    run("industry", "--num-requests", "4", "--quick", "--rounds", "2")
    assert [rounds for _, _, rounds in run.calls] == [1, 2]


def test_a_failed_workload_does_not_stop_the_others_and_exits_with_1(run: Any) -> None:
    run.outcomes["industry"] = UsageError("engine refused")
    result = run("industry", "tree-3", "--num-requests", "16")
    assert result.exit_code == 1
    assert "industry: engine refused" in result.stderr
    report = report_from_dict(json.loads((run.out / "bench.json").read_text()))
    assert [item.workload["name"] for item in report.results] == ["tree-3"]
    assert report.failures == (("industry", "engine refused"),)


def test_an_unresolved_difference_exits_with_1(run: Any) -> None:
    run.outcomes["industry"] = (Difference("batchllm", 0, 0, 0, 1, 2, None, False),)
    result = run("industry", "--num-requests", "16")
    assert result.exit_code == 1
    assert "differ from stock" in result.stderr


def test_an_interrupted_run_keeps_what_is_finished(run: Any) -> None:
    run.outcomes["tree-3"] = KeyboardInterrupt()
    result = run("industry", "tree-3", "--num-requests", "16")
    assert result.exit_code == 130
    assert f"interrupted; finished workloads are in {run.out}" in result.stderr
    report = report_from_dict(json.loads((run.out / "bench.json").read_text()))
    assert [item.workload["name"] for item in report.results] == ["industry"]


def test_an_interrupted_run_that_finished_nothing_says_so(run: Any) -> None:
    run.outcomes["industry"] = KeyboardInterrupt()
    result = run("industry", "--num-requests", "16")
    assert result.exit_code == 130
    assert "interrupted before a workload was finished" in result.stderr
    assert not run.out.exists()


def test_workloads_that_ignore_the_scale_say_so(run: Any) -> None:
    result = run("decode-heavy", "--num-requests", "8", "--scale", "4")
    assert "decode-heavy run at scale 1" in result.stderr
