# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm simulate` as a user meets it: what it prints and keeps, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from page_model import Reader
from plan_model import write_lines
from typer.testing import CliRunner

from vllm_batchllm.hardware.devices import DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.simulate import command, suite
from vllm_batchllm.simulate.arms import arm_names
from vllm_batchllm.simulate.setup import ATTENTION_BOUNDS

SMALL = ("micro-2000-200-d16", "--scale", "32", "--num-requests", "32", "--kv-blocks", "60")


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)  # with a callback, "simulate" is a subcommand as in the real CLI
    app.command("simulate")(command.simulate)
    result = CliRunner().invoke(app, ["simulate", *map(str, arguments)], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "simulate.json").read_text())
    return record


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The second arm is interrupted by the user; the arms that have begun."""
    begun: list[str] = []
    run_arm = suite.run_arm

    def interrupt(batch: Any, arm: Any, *rest: Any) -> Any:
        begun.append(arm.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return run_arm(batch, arm, *rest)

    monkeypatch.setattr(suite, "run_arm", interrupt)
    return begun


def test_the_table_has_a_row_for_each_arm_and_one_for_the_bound() -> None:
    result = run(*SMALL, "--price", "2.5")
    assert result.exit_code == 0, result.stderr
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.split()]
    for name in ("stock", "sorted", "batchllm", "(lower"):
        assert rows.count(name) == 1
    assert "…" not in result.stdout, "nothing is cut at 80 columns"
    assert "32 requests" in result.stdout and "60 KV blocks of 16 tokens" in result.stdout
    assert "cost" in result.stdout and "Llama-3.1-8B on 1 x A100-80GB" in result.stdout


def test_json_on_standard_output_is_the_record_and_nothing_else(tmp_path: Path) -> None:
    result = run(*SMALL, "--json", "--out", tmp_path, "--shared-attention", "--price", "2")
    record = json.loads(result.stdout)
    assert record == record_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["simulate.json"]
    (only,) = record["results"]
    names = [one["arm"] for one in only["runs"]]
    ours = ["batchllm" + suffix for suffix in ("", *ATTENTION_BOUNDS)]
    assert names == ["stock", "sorted", "tuned", *ours]
    for one in only["runs"]:
        assert sum(one["parts"].values()) == pytest.approx(one["makespan_s"])
        assert one["device_hours"] == pytest.approx(one["makespan_s"] / 3600)
        assert one["cost"] == pytest.approx(2 * one["device_hours"])
        assert 0 < len(one["step_tokens"]) == len(one["step_kv_blocks"]) <= suite.MOST_POINTS
    assert only["runs"][1]["speed_over_sorted"] == 1
    vllms = [one["makespan_s"] for one in only["runs"][:4]]
    assert only["bound_s"] <= min(vllms)


def test_a_record_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "simulate.json").write_text("old")
    run(*SMALL, "-p", "sorted", "--out", tmp_path)
    assert [one["arm"] for one in record_of(tmp_path)["results"][0]["runs"]] == ["sorted"]
    assert [path.name for path in tmp_path.iterdir()] == ["simulate.json"]


def test_every_source_has_its_own_result(tmp_path: Path) -> None:
    names = ("micro-2000-200", *SMALL)  # an alias of the second one
    run(*names, "-p", "sorted", "-p", "dfs", "--out", tmp_path)
    assert [len(result["runs"]) for result in record_of(tmp_path)["results"]] == [2, 2]


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("--device", [*DEVICES, "cpu"]),
        ("--model", [*MODELS, "a folder with a config.json"]),
        ("--policy", arm_names()),
    ],
)
def test_an_unknown_name_lists_the_known_ones(option: str, known: list[str]) -> None:
    text = refused(*SMALL, option, "nope")
    assert f"error: unknown {option[2:]} 'nope'" in text
    assert all(name in text for name in known)


def test_an_unknown_workload_lists_the_known_ones() -> None:
    assert "unknown workload 'tree-4'. Did you mean 'tree-3'?" in refused("tree-4")


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    text = refused("tree-3", "--model", "Llama-3.1-70B")
    assert "does not fit 1 x A100-80GB: 90% of 80.0 GiB is 72.0 GiB" in text
    assert "weights 131.4" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scale", "0"], "scale must be a number above 0"),
        (["--option", "kv_threshold"], "KEY=VALUE"),
        (["--option", "kv_threshold=-1"], "kv_threshold"),
        (["--tensor-parallel", "3"], "cannot be divided among 3 devices"),
        (["--weight-bits", "0"], "between 1 and 32 bits"),
        (["--memory-utilization", "2"], "share of the memory"),
        (["--block-size", "0"], "--block-size"),
        (["--replicas", "0"], "the number of replicas must be from 1 to 1,024, not 0"),
        (["--placement", "hash"], "--placement hash is for several replicas; give --replicas"),
        (["--slowest-speed", "0.5"], "--slowest-speed 0.5 is for several replicas"),
        (["--lockstep"], "--lockstep is for several replicas; give --replicas"),
        (["--replicas", "2", "--slowest-speed", "2"], "above 0 and at most 1"),
        (["--lookahead", "0"], "max_waiting must be at least 1"),
        (["--device", "cpu", "--shared-attention"], "cannot be simulated with measured costs"),
    ],
)
def test_wrong_use_exits_with_2_and_the_reason(arguments: list[str], words: str) -> None:
    assert words in refused(*SMALL[:1], *arguments)


def test_a_bad_line_of_a_trace_is_named(tmp_path: Path) -> None:
    good = {"input_length": 512, "output_length": 1, "hash_ids": [0]}
    path = write_lines(tmp_path / "trace.jsonl", [good, good, {**good, "hash_ids": [0, 1]}])
    text = refused(path)
    assert f'{path}, line 3: "input_length" 512 needs 1 "hash_ids"' in text


def test_a_request_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    large = {"prompt": [1] * 2000, "max_tokens": 1}
    path = write_lines(tmp_path / "large.jsonl", [large])
    text = refused(*SMALL, path, "--out", tmp_path / "out")
    assert "has 2001 tokens, which is 126 KV blocks of 16; there are 60" in text
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_the_finished_rows(
    tmp_path: Path, interrupted: list[str]
) -> None:
    result = run(*SMALL, "--out", tmp_path, "--report", tmp_path)
    assert result.exit_code == 130
    assert interrupted == ["stock", "sorted"]
    assert f"interrupted; finished rows are in {tmp_path}" in result.stderr
    assert "stock" in result.stdout and "batchllm" not in result.stdout
    assert [one["arm"] for one in record_of(tmp_path)["results"][0]["runs"]] == ["stock"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "stock" in Reader(page, inside="th").texts


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, interrupted: list[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    text = refused(*SMALL, "--report", file)
    assert f"--report: cannot write a page into {file}: " in text
    assert f"cannot write the record into {file}: " in refused(*SMALL, "--out", file)
    assert interrupted == []


def test_the_page_is_told_on_standard_error(tmp_path: Path) -> None:
    result = run(*SMALL, "-p", "sorted", "-p", "batchllm", "--report", tmp_path)
    assert f"page: {tmp_path / 'index.html'}" in result.stderr and "page:" not in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_scored_prompts_are_computed_once_by_ours_alone(tmp_path: Path) -> None:
    arguments = ("multiple-choice", "--scale", "4", "--num-requests", "80", "--kv-blocks", "120")
    run(*arguments, "-p", "sorted", "-p", "batchllm", "--out", tmp_path)
    (result,) = record_of(tmp_path)["results"]
    found = {each["arm"]: each for each in result["runs"]}
    assert found["sorted"]["saved_ratio"] == 0
    assert found["batchllm"]["saved_ratio"] > 0.5
    assert found["batchllm"]["reuse_efficiency"] >= 0.99


def test_replicas_have_a_row_for_each_arm_and_placement(tmp_path: Path) -> None:
    pool = ("--replicas", 3, "--placement", "ours", "--placement", "hash", "--price", 2)
    arms = ("-p", "batchllm", "-p", "tuned")
    result = run(*SMALL, *pool, *arms, "--out", tmp_path, "--report", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "3 replicas of Llama-3.1-8B on 1 x A100-80GB" in result.stdout
    assert "computed twice" in result.stdout
    (only,) = record_of(tmp_path)["results"]
    names = ["batchllm, ours", "batchllm, hash", "tuned, ours", "tuned, hash"]
    assert [one["arm"] for one in only["runs"]] == names
    assert only["engine"]["num_replicas"] == 3
    for one in only["runs"]:
        assert one["device_hours"] == pytest.approx(3 * one["makespan_s"] / 3600)
        assert one["makespan_s"] >= only["bound_s"]
        assert sum(one["pool"]["num_requests"]) == 32
        assert one["pool"]["duplicated_tokens"] >= 0
    assert only["runs"][0]["speed_over_first"] == 1
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert set(names) <= set(Reader(page, inside="td").texts) | set(Reader(page, inside="th").texts)


def test_an_unknown_placement_lists_the_known_ones() -> None:
    text = refused(*SMALL, "--replicas", 2, "--placement", "nope")
    assert "error: unknown placement 'nope'" in text and "round-robin" in text


def test_one_replica_changes_nothing(tmp_path: Path) -> None:
    run(*SMALL, "-p", "batchllm", "--out", tmp_path / "a")
    run(*SMALL, "-p", "batchllm", "--replicas", 1, "--out", tmp_path / "b")
    first, second = (record_of(tmp_path / name)["results"][0] for name in "ab")
    for result in (first, second):
        for name in ("plan_s", "plan_share", "wall_s", "counters"):
            del result["runs"][0][name]
    assert first == second and "pool" not in first["runs"][0]


ARRIVING = ("--arrivals", "poisson", "--rate", 50)


def test_arrivals_over_time_show_latencies_and_energy(tmp_path: Path) -> None:
    result = run(*SMALL, *ARRIVING, "--out", tmp_path, "--price", 2)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.split()]
    names = [row[0] for row in rows]
    assert names.count("stock") == names.count("batchllm") == 1
    assert "sorted" not in names and "(lower" not in names
    assert "…" not in result.stdout and max(map(len, result.stdout.splitlines())) <= 80
    assert "TTFT" in result.stdout and "poisson, 50 requests/s" in " ".join(result.stdout.split())
    (only,) = record_of(tmp_path)["results"]
    assert only["workload"]["arrivals"]["rate"] == 50 and only["bound_s"] is None
    for one, row in zip(only["runs"], rows[names.index("stock") :], strict=False):
        online = one["online"]
        latencies, energy = online["latencies"], online["energy"]
        assert row[1] == f"{one['requests_per_s']:.2f}"
        assert row[2:4] == [f"{latencies['ttft'][name]:.3f}" for name in ("p50_s", "p99_s")]
        assert row[6:8] == [f"{latencies['end_to_end'][name]:.3f}" for name in ("p50_s", "p99_s")]
        idle_s = one["makespan_s"] - online["busy_s"]
        assert energy["joules"] == pytest.approx(55 * idle_s + 400 * online["busy_s"])
        assert energy["joules_per_request"] == pytest.approx(energy["joules"] / 32)
        assert online["by_class"] == {"0": latencies}
        assert 0 < online["busy_ratio"] <= 1


def test_arrivals_depend_on_the_seed_and_on_nothing_else() -> None:
    def makespans(*more: object) -> list[float]:
        record = json.loads(run(*SMALL, *ARRIVING, "--json", *more).stdout)
        return [one["makespan_s"] for one in record["results"][0]["runs"]]

    assert makespans() == makespans() != makespans("--seed", 1)


def test_on_this_machine_no_energy_is_shown() -> None:
    record = json.loads(run(*SMALL, *ARRIVING, "-p", "stock", "--device", "cpu", "--json").stdout)
    assert record["results"][0]["runs"][0]["online"]["energy"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arrivals", "poisson"], "--arrivals poisson needs --rate"),
        (["--rate", "3"], "--rate 3 says how requests arrive; give --arrivals"),
        (["--arrivals", "poisson", "--rate", "0"], "--rate must be above 0"),
        (["--arrivals", "nope"], "unknown arrivals 'nope'"),
        (["--arrivals", "bursts", "--rate", "3"], "needs --burst-size"),
        (["--arrivals", "trace"], "micro-2000-200-d16 does not say when its requests arrived"),
        ([*ARRIVING, "--replicas", "2"], "--replicas 2 shares a batch that is all there"),
        ([*ARRIVING, "--report", "page"], "--report page shows batches, no latencies"),
        ([*ARRIVING, "--lookahead", "3"], "a lookahead of 3 holds requests back"),
        ([*ARRIVING, "-p", "sorted"], "policy 'sorted' arranges requests"),
        ([*ARRIVING, "-p", "tuned"], "policy 'tuned' arranges requests"),
    ],
)
def test_arrivals_that_make_no_sense_exit_with_2_and_the_reason(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    assert words in refused(*SMALL, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trace_is_served_as_it_was_recorded(tmp_path: Path) -> None:
    good = {"input_length": 512, "output_length": 2, "hash_ids": [0]}
    lines = [good | {"timestamp": stamp} for stamp in (0, 10_000, 20_000)]
    path = write_lines(tmp_path / "trace.jsonl", lines)
    for more, last_s in (((), 20.0), (("--rate", 1), 2.0)):
        text = run(path, "--arrivals", "trace", "--json", *more).stdout
        for one in json.loads(text)["results"][0]["runs"]:
            assert last_s < one["makespan_s"] < last_s + 1
