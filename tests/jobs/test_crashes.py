# SPDX-License-Identifier: Apache-2.0
"""Jobs that are killed, as processes of their own: whatever was finished stays, and the next run ends it."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from job_files import answers, many_lines, records, run_whole

from vllm_batchllm.failpoints import VARIABLE

SCRIPT = Path(__file__).with_name("job_process.py")
DONE, FAILED, USAGE, RESUME = 0, 1, 64, 75
KILLED = -signal.SIGKILL
NUM_LINES = 200


def start(
    path: Path, output: Path, *extra: str, delay_s: float = 0.002, failpoints: str = ""
) -> subprocess.Popen[str]:
    environment = {**os.environ, VARIABLE: failpoints}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), str(output), str(delay_s), *extra],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def run(path: Path, output: Path, *extra: str, **options: Any) -> int:
    return ended(start(path, output, *extra, **options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return many_lines(tmp_path / "in.jsonl", NUM_LINES)


@pytest.fixture
def whole(path: Path, tmp_path: Path) -> dict[str, Any]:
    """The answers of a run that nobody has interrupted."""
    return answers(run_whole(path, tmp_path / "whole.jsonl"))


PLACES = [
    "journal.append=kill:3",
    "journal.write=kill:2",
    "journal.written=kill:2",
    "manifest.write=kill",
    "manifest.rename=kill",
    "manifest.renamed=kill",
    "status.rename=kill:2",
]


@pytest.mark.parametrize("failpoint", PLACES)
def test_a_kill_at_any_write_loses_nothing(
    path: Path, tmp_path: Path, whole: dict[str, Any], failpoint: str
) -> None:
    output = tmp_path / "out.jsonl"
    assert run(path, output, failpoints=failpoint) == KILLED
    before = answers(records(output)) if output.exists() else {}
    assert run(path, output) == DONE
    assert answers(records(output)) == whole
    assert before.items() <= whole.items()


@pytest.mark.parametrize("passage", [1, 4])
def test_a_kill_in_the_middle_of_a_line_tears_it_and_no_other(
    path: Path, tmp_path: Path, whole: dict[str, Any], passage: int
) -> None:
    output = tmp_path / "out.jsonl"
    assert run(path, output, "halves", failpoints=f"journal.partial=kill:{passage}") == KILLED
    assert not output.read_bytes().endswith(b"\n")
    assert run(path, output) == DONE
    assert answers(records(output)) == whole


@pytest.mark.parametrize("place", ["output.write", "output.rename", "output.renamed"])
def test_a_kill_while_the_output_is_made_leaves_it_whole_or_absent(
    path: Path, tmp_path: Path, whole: dict[str, Any], place: str
) -> None:
    output = tmp_path / "out.jsonl"
    assert run(path, output, "keep-order", failpoints=f"{place}=kill") == KILLED
    assert not output.exists() or answers(records(output)) == whole
    assert run(path, output, "keep-order") == DONE
    names = [one["custom_id"] for one in records(output)]
    assert names == [f"r{i}" for i in range(NUM_LINES)]


@pytest.mark.parametrize(
    "place", ["spool.write", "spool.rename", "spool.renamed", "spool_note.rename"]
)
def test_a_kill_while_the_input_is_unpacked(
    path: Path, tmp_path: Path, whole: dict[str, Any], place: str
) -> None:
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    output = tmp_path / "out.jsonl"
    assert run(packed, output, failpoints=f"{place}=kill") == KILLED
    assert run(packed, output) == DONE
    assert answers(records(output)) == whole


@pytest.mark.parametrize(
    "place", ["journal.rewrite.write", "journal.rewrite.rename", "journal.rewrite.renamed"]
)
def test_a_kill_while_a_spoilt_journal_is_mended(
    path: Path, tmp_path: Path, whole: dict[str, Any], place: str
) -> None:
    output = tmp_path / "out.jsonl"
    assert run(path, output) == DONE
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([*lines[:9], b"\x00\x00\n", *lines[9:-9]]))
    assert run(path, output, failpoints=f"{place}=kill") == KILLED
    assert run(path, output) == DONE
    assert answers(records(output)) == whole


@pytest.mark.parametrize(
    "failpoint", ["journal.write=full:2", "journal.write=denied:2", "manifest.write=full"]
)
def test_a_full_disk_is_said_and_loses_nothing(
    path: Path, tmp_path: Path, whole: dict[str, Any], failpoint: str
) -> None:
    output = tmp_path / "out.jsonl"
    process = start(path, output, failpoints=failpoint)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (USAGE if failpoint.startswith("manifest") else FAILED)
    said = "Permission denied" if "denied" in failpoint else "No space left on device"
    assert said in " ".join(errors.replace("│", " ").split())
    assert run(path, output) == DONE
    assert answers(records(output)) == whole


def test_a_clock_that_jumps_harms_nobody(path: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    output = tmp_path / "out.jsonl"
    assert run(path, output, "clock") == DONE
    assert answers(records(output)) == whole


def test_two_processes_on_one_output(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = start(path, output, delay_s=0.3)
    assert first.stdout is not None and first.stdout.readline() == "running\n"
    second = start(path, output)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == USAGE
    assert "out.jsonl is being written by another process" in errors
    assert ended(first) == DONE
    assert len(answers(records(output))) == NUM_LINES


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_job_that_is_asked_to_stop_says_resume_me(
    path: Path, tmp_path: Path, whole: dict[str, Any], name: str
) -> None:
    output = tmp_path / "out.jsonl"
    process = start(path, output, delay_s=0.1)
    assert process.stdout is not None and process.stdout.readline() == "running\n"
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))
    assert ended(process) == RESUME
    state = json.loads((tmp_path / "out.jsonl.status.json").read_text())
    assert state["state"] == "interrupted" and 0 < state["lines"]["completed"] < NUM_LINES
    assert run(path, output) == DONE
    assert answers(records(output)) == whole


def killed_at_random(folder: Path, num_lines: int, num_kills: int, seed: int) -> None:
    path, output = many_lines(folder / "in.jsonl", num_lines), folder / "out.jsonl"
    whole = answers(run_whole(path, folder / "whole.jsonl"))
    draw = random.Random(seed)
    kept: dict[str, Any] = {}
    for _ in range(num_kills):
        process = start(path, output, delay_s=0.02)
        assert process.stdout is not None
        if draw.random() < 0.8:
            process.stdout.readline()
        time.sleep(draw.random() * 0.25)
        process.kill()
        assert ended(process) in (KILLED, DONE)
        found = output.read_bytes() if output.exists() else b""
        complete = found[: found.rfind(b"\n") + 1]
        now = answers(map(json.loads, complete.splitlines()))
        assert kept.items() <= now.items(), "a finished line was lost"
        kept = now
    assert run(path, output, delay_s=0.0) == DONE
    assert answers(records(output)) == whole


def test_kills_at_random_moments(tmp_path: Path) -> None:
    killed_at_random(tmp_path, num_lines=600, num_kills=8, seed=random.randrange(10**6))


@pytest.mark.long
def test_many_kills_at_random_moments(tmp_path: Path) -> None:
    killed_at_random(tmp_path, num_lines=10_000, num_kills=50, seed=random.randrange(10**6))
