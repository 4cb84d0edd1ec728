# SPDX-License-Identifier: Apache-2.0
"""The command line of a job: what it understands, what it refuses by name, what `status` and `--dry-run` tell."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from job_files import EchoServer, chat_line, many_lines, opened, run, write_lines
from typer.testing import CliRunner

from vllm_batchllm.cli import app
from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.errors import UsageError
from vllm_batchllm.jobs import command
from vllm_batchllm.jobs.job import Job
from vllm_batchllm.jobs.options import JobOptions, parse_job


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return many_lines(tmp_path / "in.jsonl", 24)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def parsed(*argv: object) -> JobOptions:
    return parse_job([str(one) for one in argv])


def test_every_option_of_vllm_is_one_of_the_job(path: Path, output: Path) -> None:
    options = parsed("--model", "m", path, "--max-num-seqs", "7", output, "--dtype=float32")
    assert options.input_name == str(path) and options.paths.output == output
    engine = options.engine
    assert (engine.model, engine.max_num_seqs, engine.dtype) == ("m", 7, "float32")
    assert engine.scheduler_cls == BATCHLLM_SCHEDULER
    assert not hasattr(engine, "stall_s") and not hasattr(engine, "input")
    assert parsed(path, output, "--scheduler", "stock").engine.scheduler_cls is None
    assert options.settings.dedupe
    ours = json.dumps({"batchllm": {"dedupe": False}})
    assert not parsed(path, output, "--additional-config", ours).settings.dedupe


def test_help_is_short_and_names_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_job(["--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--keep-order" in said and "--help=all" in said and "75 interrupted" in said
    assert len(said.splitlines()) < 80


def test_what_may_change_answers_makes_another_job(path: Path, output: Path) -> None:
    def identity(*more: str) -> dict[str, str]:
        return dict(parsed(path, output, "--model", "m", *more).settings.identity)

    usual = identity()
    same = ["--max-num-seqs", "3", "--tensor-parallel-size", "2", "--scheduler", "stock"]
    assert identity(*same, "--gpu-memory-utilization", "0.5") == usual
    assert identity("--dtype", "float32") == {**usual, "--dtype": "float32"}
    assert identity("--max-tokens", "5")["--max-tokens"] == "5"
    for more in (["--revision", "x"], ["--chat-template", "t"], ["--quantization", "fp8"]):
        assert identity(*more) != usual


@pytest.mark.parametrize(
    ("output", "extra", "journal", "is_final"),
    [
        ("out.jsonl", [], "out.jsonl", False),
        ("out.jsonl", ["--keep-order"], "out.jsonl.journal.jsonl", True),
        ("out.jsonl.gz", [], "out.jsonl.gz.journal.jsonl", True),
        ("out.parquet", [], "out.parquet.journal.jsonl", True),
        ("out.jsonl", ["--journal", "j"], "j", True),
    ],
)
def test_the_journal_is_the_output_or_stands_beside_it(
    path: Path,
    output: str,
    extra: list[str],
    journal: str,
    is_final: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(path.parent)
    paths = parsed(path, output, *extra).paths
    assert (paths.journal, paths.is_final) == (Path(journal), is_final)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: INPUT, OUTPUT"),
        (["in.jsonl", "out", "--no-such-option"], "--no-such-option"),
        (["in.jsonl", "in.jsonl"], "INPUT and OUTPUT are the same file"),
        (["in.jsonl", "."], "is a folder; name a file in it"),
        (["in.jsonl", "nowhere/out"], "the folder nowhere does not exist"),
        (["in.jsonl", "out", "--disable-log-stats"], "--disable-log-stats cannot be used here"),
        (["in.jsonl", "out", "--stall-s", "0"], "--stall-s must be above 0, not 0.0"),
        (["in.jsonl", "out", "--max-restarts", "-1"], "must be 0 or more, not -1"),
        (["in.jsonl", "out", "--simulate", "H100-80GB"], "--simulate H100-80GB needs --dry-run"),
        (["in.jsonl", "out", "--additional-config", '{"batchllm": {"order": "x"}}'], "'x'"),
        (["in.jsonl", "out", "--scheduler", "fifo"], "unknown scheduler 'fifo'"),
    ],
)
def test_wrong_use_is_refused_by_name(
    path: Path, argv: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(UsageError) as caught:
        parse_job(argv)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "missing.jsonl", "missing.jsonl cannot be read"),
        (lambda folder: folder, "it is a directory"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], make: object, said: str
) -> None:
    assert callable(make)
    assert command.run_job([str(make(tmp_path)), str(output)]) == command.EXIT_USAGE
    assert said in capsys.readouterr().err


def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = "a long text " * 50
    lines = [chat_line(f"r{n}", shared + str(n % 3), temperature=0) for n in range(9)]
    path = write_lines(tmp_path / "in.jsonl", [*lines, {"no": "request"}])
    assert command.run_job([str(path), str(output), "--dry-run"]) == 0
    said = capsys.readouterr().out
    rows = dict(row.strip("│ ").split("│") for row in said.splitlines() if row.startswith("│"))
    found = {name.strip(): value.strip() for name, value in rows.items()}
    assert found["lines"] == "10" and found["to be computed"] == "3"
    assert found["exact duplicates, computed once"] == "6"
    assert found["lines that are no request"] == "1" and found["prefix groups"] == "1"
    assert list(tmp_path.iterdir()) == [path]


def test_a_dry_run_tells_tokens_and_hours(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
    assert (model / "config.json").exists(), "run `make model`"
    lines = [chat_line(f"r{n}", "a long text " * 50 + str(n), max_tokens=5) for n in range(9)]
    path = write_lines(tmp_path / "in.jsonl", lines)
    argv = [path, output, "--model", model, "--dry-run", "--simulate", "A100-80GB"]
    assert command.run_job(list(map(str, argv))) == 0
    said = capsys.readouterr().out
    assert "prompt text" in said and "prompt tokens" in said and "A100-80GB" in said


def test_a_restart_forgets_and_a_file_of_others_is_not_touched(
    path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.write_text("precious\n")
    assert command.run_job([str(path), str(output), "--dry-run"]) == command.EXIT_USAGE
    assert "no job says that it has written it" in capsys.readouterr().err
    assert output.read_text() == "precious\n"
    assert command.run_job([str(path), str(output), "--dry-run", "--restart"]) == 0
    assert output.read_text() == "precious\n", "a dry run changes nothing"
    options = parsed(path, output, "--restart")
    session = Job(options).open()
    session.close()
    assert output.read_text() == ""


def status_of(output: Path, **changes: object) -> str:
    state = {
        "input": "in.jsonl",
        "output": str(output),
        "state": "running",
        "message": "",
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "lines": {"total": 10, "completed": 4, "failed": 1, "resumed": 2},
        "errors": {"invalid_line": 1},
        "tokens": {"prompt_tokens": 1000.0, "output_tokens": 50.0, "preemptions": 0.0},
        "tokens_per_s": 100.0,
        "saved_ratio": 0.75,
        "running_s": 3700.0,
        "time_left_s": 61.0,
        "restarts": 1,
    }
    output.with_name(f"{output.name}.status.json").write_text(json.dumps(state | changes))
    result = CliRunner().invoke(app, ["status", str(output)])
    assert result.exit_code == 0
    return result.output


def test_status_tells_how_far_a_job_is(output: Path) -> None:
    said = status_of(output)
    for part in ("5 of 10 (2 from earlier runs)", "75.0%", "1:01:40 h", "1:01 min", "running"):
        assert part in said
    assert "invalid_line" in said


def test_status_notices_that_the_process_is_gone(output: Path) -> None:
    gone = status_of(output, pid=2**22 + 1)
    assert "interrupted" in gone and "run the same command again" in " ".join(gone.split())
    assert "interrupted" not in status_of(output, pid=2**22 + 1, host="elsewhere")
    assert "interrupted" not in status_of(output, pid=2**22 + 1, state="done")


def test_status_of_no_job_is_refused(output: Path) -> None:
    result = CliRunner().invoke(app, ["status", str(output)])
    assert result.exit_code == command.EXIT_USAGE


def test_a_finished_job_needs_no_engine(path: Path, output: Path) -> None:
    """Its options name a model that does not exist: nothing looks at it."""
    settings = parsed(path, output, "--model", "m").settings
    session = opened(path, output, settings)
    run(session, EchoServer())
    session.close()
    assert command.run_job([str(path), str(output), "--model", "m"]) == command.EXIT_DONE
