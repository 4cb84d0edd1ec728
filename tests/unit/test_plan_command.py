# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm plan` as a user meets it: what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import typer
from click.testing import Result
from plan_model import save_model, write_lines
from typer.testing import CliRunner

from vllm_batchllm.plan import command

DOCUMENT = "A document of some length that is the same for all questions. " * 4
QUESTIONS = [{"prompt": f"{DOCUMENT}{number}?"} for number in range(5)]
# One token per byte and one in front: the document and the token in front fill 15 whole blocks.
SHARED = (1 + len(DOCUMENT)) // 16 * 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "batch.jsonl", QUESTIONS)


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)  # with a callback, "plan" is a subcommand as in the real CLI
    app.command("plan")(command.plan)
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "100"})
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


def test_the_table_tells_the_possible_saving_and_the_groups(batch: Path, model: str) -> None:
    result = run(batch, "--model", model)
    assert result.exit_code == 0
    assert f"{4 * SHARED:,} tokens at block size 16" in result.stdout
    assert "not simulated; give --kv-blocks or --kv-tokens" in result.stdout
    assert "A document of some length" in result.stdout
    assert result.stderr == ""


def test_the_table_owns_up_to_its_simplification(batch: Path, model: str) -> None:
    result = run(batch, "--model", model, "--kv-blocks", 100)
    assert f"{4 * SHARED:,} tokens in 100 KV blocks" in result.stdout
    assert "one request at a time, in file order, without outputs" in " ".join(
        result.stdout.split()
    )


def test_json_is_all_there_is_on_stdout(batch: Path, model: str) -> None:
    plan = run_json(batch, "--model", model, "--kv-tokens", 16 * 20 + 15)
    assert plan["num_requests"] == 5
    assert plan["optimal_saved_tokens"] == 4 * SHARED
    assert plan["first_come"]["num_kv_blocks"] == 20
    assert [group["num_members"] for group in plan["groups"]] == [5]


def test_a_cache_too_small_for_a_request_is_said(batch: Path, model: str) -> None:
    result = run(batch, "--model", model, "--kv-blocks", 3)
    assert "do not fit at all" in result.stdout
    assert "need more than 3 KV blocks each" in result.stdout


def test_the_block_size_sets_the_grain(batch: Path, model: str) -> None:
    plan = run_json(batch, "--model", model, "--block-size", 1)
    assert plan["optimal_saved_tokens"] == 4 * (1 + len(DOCUMENT))


@pytest.mark.parametrize("record", [
    {"prompt": DOCUMENT},
    {"prompt": [7] * 100},
    {"messages": [{"role": "user", "content": DOCUMENT}]},
    {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": DOCUMENT}},
    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
     "body": {"model": "m", "messages": [{"role": "user", "content": DOCUMENT}]}},
])  # fmt: skip
def test_every_format(tmp_path: Path, model: str, record: dict[str, Any]) -> None:
    file = write_lines(tmp_path / "batch.jsonl", [record, record])
    plan = run_json(file, "--model", model)
    assert (plan["num_requests"], plan["num_duplicates"], plan["num_groups"]) == (2, 1, 1)


def mixed(folder: Path) -> Path:
    poet = {"messages": [{"role": "poet", "content": "a"}]}
    records = [{"prompt": "a"}, b"{", {"prompt": ""}, poet, [], {"prompt": "b"}]
    return write_lines(folder / "batch.jsonl", records)


def test_bad_lines_stop_it_with_numbers_and_reasons(tmp_path: Path, model: str) -> None:
    result = run(mixed(tmp_path), "--model", model)
    assert (result.exit_code, result.stdout) == (2, "")
    for text in ("line 2: not valid JSON", 'line 3: "prompt" is empty', "line 5: not a JSON obj"):
        assert text in result.stderr
    assert "has 3 bad lines; mend the file or give --skip-bad" in result.stderr


def test_skip_bad_goes_on_and_says_what_it_left_out(tmp_path: Path, model: str) -> None:
    result = run(mixed(tmp_path), "--model", model, "--skip-bad", "--json")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert (plan["num_requests"], plan["num_left_out"]) == (2, 4)
    assert "4 bad lines of" in result.stderr
    assert result.stderr.index("line 3: ") < result.stderr.index("line 4: the chat template")
    table = run(mixed(tmp_path), "--model", model, "--skip-bad").stdout
    assert "bad lines left out" in table


def test_a_chat_that_the_template_refuses_stops_it_too(tmp_path: Path, model: str) -> None:
    poet = {"messages": [{"role": "poet", "content": "a"}]}
    result = run(write_lines(tmp_path / "batch.jsonl", [poet]), "--model", model)
    assert result.exit_code == 2
    assert "line 1: the chat template refuses it: no poets, please" in result.stderr
    assert "has 1 bad line; mend" in result.stderr


def test_only_the_first_twenty_bad_lines_are_printed(tmp_path: Path, model: str) -> None:
    result = run(write_lines(tmp_path / "batch.jsonl", [b"{"] * 25), "--model", model)
    assert result.stderr.count("not valid JSON") == 20
    assert "and 5 more" in result.stderr


@pytest.mark.parametrize(("lines", "found"), [
    ([], "the file is empty"), ([b"", b"  "], "the file is empty"), ([b"{"], "none is good"),
])  # fmt: skip
def test_a_file_without_requests(
    tmp_path: Path, model: str, lines: list[bytes], found: str
) -> None:
    file = write_lines(tmp_path / "batch.jsonl", lines)
    result = run(file, "--model", model, "--skip-bad")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{file} holds no requests: {found}" in result.stderr


def test_a_missing_model_folder_is_named(batch: Path, tmp_path: Path) -> None:
    result = run(batch, "--model", tmp_path / "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: the model folder {tmp_path}/nowhere does not exist" in result.stderr


def test_a_missing_file_is_named(tmp_path: Path, model: str) -> None:
    result = run(tmp_path / "absent.jsonl", "--model", model)
    assert result.exit_code == 2
    assert "absent.jsonl cannot be read: No such file" in result.stderr


@pytest.mark.parametrize(("options", "reason"), [
    (["--kv-blocks", 1, "--kv-tokens", 16], "give only one of them"),
    (["--kv-tokens", 15], "--kv-tokens 15 is less than one block of 16 tokens"),
    (["--plot", "plan.svg"], "plan.svg does not end in .png"),
    (["--plot", "nowhere/plan.png"], "the folder nowhere for --plot does not exist"),
])  # fmt: skip
def test_options_that_cannot_be_met(
    batch: Path, model: str, options: list[object], reason: str
) -> None:
    result = run(batch, "--model", model, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr


def test_a_failure_to_write_the_picture_is_a_runtime_error(
    batch: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "plot_plan", full)
    result = run(batch, "--model", model, "--plot", tmp_path / "plan.png")
    assert result.exit_code == 1
    assert "plan.png cannot be written: No space left on device" in result.stderr


@pytest.mark.filterwarnings("error")
def test_the_picture(tmp_path: Path, model: str) -> None:
    nasty = ["costs $5 and $6 ", "日本語の文書 ", "[bold]not bold[/bold] ", "\x1b[31m\u202ered "]
    records = [{"prompt": text * 20 + str(number)} for text in nasty for number in range(3)]
    file = write_lines(tmp_path / "batch.jsonl", [*records, {"prompt": "alone"}])
    picture = tmp_path / "plan.png"
    result = run(file, "--model", model, "--kv-blocks", 30, "--levels", "--plot", picture)
    assert result.exit_code == 0, result.stderr
    assert "[bold]not bold[/bold]" in result.stdout
    assert "\x1b" not in result.stdout and "\u202e" not in result.stdout
    height, width, _ = matplotlib.image.imread(picture).shape
    assert width > height > 200


def test_a_picture_of_a_batch_that_shares_nothing(tmp_path: Path, model: str) -> None:
    file = write_lines(tmp_path / "batch.jsonl", [{"prompt": "a"}])
    assert run(file, "--model", model, "--plot", tmp_path / "plan.png").exit_code == 0
    assert (tmp_path / "plan.png").stat().st_size > 1000


def test_prompts_shorter_than_one_block(tmp_path: Path, model: str) -> None:
    file = write_lines(tmp_path / "batch.jsonl", [{"prompt": "abc"}] * 3)
    plan = run_json(file, "--model", model)
    assert (plan["optimal_saved_tokens"], plan["num_duplicates"], plan["groups"]) == (0, 2, [])


def test_a_hundred_thousand_identical_prompts(tmp_path: Path, model: str) -> None:
    file = write_lines(tmp_path / "batch.jsonl", [{"prompt": "x" * 100}] * 100_000)
    plan = run_json(file, "--model", model, "--kv-blocks", 10)
    assert plan["num_duplicates"] == 99_999
    assert plan["optimal_saved_tokens"] == plan["first_come"]["saved_tokens"] == 99_999 * 96
