# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm release` as a user meets it: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from click.testing import Result
from typer.testing import CliRunner

from vllm_batchllm import cli
from vllm_batchllm.admission.release_policy import ReleasePolicy
from vllm_batchllm.admission.release_server import BatchServer
from vllm_batchllm.admission.release_solver import solve
from vllm_batchllm.compat import version
from vllm_batchllm.release.show import policy_text, runs_of

SERVER = {
    "--arrival-rate": "1479",
    "--service-ms": "1.0524,0.3051",
    "--energy-mj": "19.603,19.899",
    "--max-batch": "32",
    "--w-power": "2",
}


def run(*flags: object, **changed: object) -> Result:
    options = SERVER | {
        f"--{name.replace('_', '-')}": str(value) for name, value in changed.items()
    }
    arguments = [part for option in options.items() for part in option]
    result = CliRunner().invoke(
        cli.app, ["release", *arguments, *map(str, flags)], env={"COLUMNS": "100"}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def run_json(**changed: object) -> dict[str, Any]:
    result = run("--json", **changed)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_it_tells_the_policy_and_what_other_rules_cost() -> None:
    result = run()
    assert result.exit_code == 0 and result.stderr == ""
    assert "load 0.500 of 2,958.7 requests a second" in result.stdout
    assert "control limit 9" in result.stdout
    assert "0-8: wait, 9-23: all, 24-27: 23," in result.stdout
    assert "61 and more: 32" in result.stdout
    rows = {line.split("  ")[0].strip(): line.split() for line in result.stdout.splitlines()}
    assert {"best", "greedy", "batches of 8", "16 or more", "batches of 32"} <= set(rows)
    assert rows["best"][1:] == ["71.820", "+0.0%", "6.601", "32.610"]
    assert "(simulated ±" in result.stdout


def test_json_is_the_policy_of_the_library() -> None:
    server = BatchServer.affine(1479, (1.0524, 0.3051), (19.603, 19.899), 32, w_power=2)
    policy, found = solve(server), run_json()
    assert found["policy"] == list(policy.batches)
    assert found["control_limit"] == policy.control_limit == 9
    assert found["cost"] == policy.cost
    assert found["mean_response_ms"] == policy.mean_response_ms
    assert found["power_w"] == policy.power_w
    best, *others = found["rules"]
    assert best["cost"] == policy.cost
    assert all(rule["cost"] > policy.cost for rule in others)
    assert [rule["name"] for rule in found["rules"] if rule["cost_error"]] == ["8, or 21.6 ms"]


def test_options_reach_the_model() -> None:
    found = run_json(min_batch=4, max_batch=16, states=50, overflow_cost=7, w_latency=2)
    server = BatchServer.affine(1479, (1.0524, 0.3051), (19.603, 19.899), 16, 4, 2, 2)
    assert found["policy"] == list(solve(server, 50, 7.0).batches)
    assert found["overflow_batch"] == 16
    assert "batches of 32" not in [rule["name"] for rule in found["rules"]]


def test_a_rule_that_does_not_keep_up_is_null_and_said() -> None:
    found = run_json(arrival_rate=2800)
    eight = next(rule for rule in found["rules"] if rule["name"] == "batches of 8")
    assert eight["cost"] is None and eight["mean_response_ms"] is None
    assert "does not keep up" in run(arrival_rate=2800).stdout


def test_too_few_states_are_said() -> None:
    result = run(arrival_rate=2800, states=40)
    assert result.exit_code == 0
    assert "note: more than 40 requests wait" in result.stderr
    assert "give more --states" in result.stderr
    near_one = run(arrival_rate=2958)
    assert "the load is too near 1" in near_one.stderr
    assert "time-outs are not simulated here" in near_one.stdout


def test_a_picture_is_written(tmp_path: Path) -> None:
    path = tmp_path / "release.png"
    assert run("--plot", path).exit_code == 0
    height, width, *_ = matplotlib.image.imread(path).shape
    assert height > 300 and width > 800


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"arrival_rate": 0}, "--arrival-rate 0: must be a number from 1e-09"),
        ({"arrival_rate": "nan"}, "--arrival-rate nan: must be"),
        ({"arrival_rate": -3}, "--arrival-rate -3: must be"),
        ({"arrival_rate": 2959}, "serve 2,958.69 requests a second at most"),
        ({"service_ms": "1"}, "--service-ms '1' is not two numbers; give the fixed part"),
        ({"service_ms": "1,2,3"}, "--service-ms '1,2,3' is not two numbers"),
        ({"service_ms": "1,x"}, "as --service-ms 1.05,0.31"),
        ({"service_ms": "0,0"}, "--service-ms 0,0: a batch takes no time"),
        ({"service_ms": "-1,2"}, "--service-ms -1,2: -1: must be a number from 0"),
        ({"energy_mj": "1,inf"}, "--energy-mj 1,inf: inf: must be"),
        ({"energy_mj": "0,0"}, "--w-power 2 weighs the power that batches take"),
        ({"w_latency": -1}, "--w-latency -1: must be a number from 0"),
        ({"w_latency": 0, "w_power": 0}, "--w-latency 0 and --w-power 0: nothing is wanted"),
        ({"max_batch": 0}, "--max-batch 0: must be from 1 to 1,024"),
        ({"max_batch": 10**9}, "--max-batch 1000000000: must be from 1 to 1,024"),
        ({"min_batch": 0}, "--min-batch 0: must be 1 or more"),
        ({"min_batch": 33}, "--min-batch 33 is above --max-batch 32; lower one"),
        ({"states": 31}, "--states 31: must be from --max-batch, 32, to 2,048"),
        ({"states": 10**6}, "--states 1000000: must be"),
        ({"overflow_cost": -1}, "--overflow-cost -1: must be"),
        ({"plot": "/nowhere/at/all.png"}, "there is no folder /nowhere/at; create it first"),
        ({"plot": "/tmp/picture.pdf"}, "does not end in .png"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changed: dict[str, object], told: str) -> None:
    result = run(**changed)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    folder = tmp_path / "a.png"
    folder.mkdir()
    assert run("--plot", folder).exit_code == 2


def test_it_works_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise version.UnsupportedVLLMError("none")

    monkeypatch.setattr(version, "check_vllm_version", refuse)
    assert run("--json").exit_code == 0


def test_it_imports_neither_vllm_nor_torch() -> None:
    code = (
        "import sys; from vllm_batchllm.release import compare, show; "
        "print({'vllm', 'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_table_is_told_in_runs() -> None:
    assert runs_of((0, 0, 2, 3, 3, 3)) == [(0, 1, "wait"), (2, 3, "all"), (4, 5, "3")]
    policy = ReleasePolicy((0, 0, 2, 3, 3, 3), 3, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert policy_text(policy) == "0-1: wait, 2-3: all, 4 and more: 3"
    policy = ReleasePolicy((0, 0, 2, 3, 3), 4, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert policy_text(policy) == "0-1: wait, 2-3: all, 4: 3, 5 and more: 4"
    many = ReleasePolicy((0, *[1, 1, 2, 2] * 10), 4, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert "more, see --json), 41 and more: 4" in policy_text(many)
