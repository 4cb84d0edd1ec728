# SPDX-License-Identifier: Apache-2.0
"""All commands: help and refusals do not wait for vLLM, interrupts end alike, caches are in one place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from plan_model import write_lines
from typer.testing import CliRunner

from vllm_batchllm import cli
from vllm_batchllm.attention.speed_records import own_folder
from vllm_batchllm.cache_folder import cache_folder
from vllm_batchllm.simulate.calibration import CALIBRATION_FILE, Calibration

COMMANDS = ("plan", "bench", "simulate", "calibrate", "run", "status", "arrange", "release")
MOST_CPU_S = 1.5
"""Generous: 0.4 s on a quiet machine, most of them for the imports of the first command."""
REFUSALS = {
    "simulate industry nonsense": "unknown workload 'nonsense'",
    "simulate industry --device nonsense": "unknown device 'nonsense'",
    "simulate industry --model nonsense": "unknown model 'nonsense'",
    "simulate industry -p nonsense": "unknown policy 'nonsense'",
    "simulate industry --replicas 2 --placement nonsense": "unknown placement 'nonsense'",
    "simulate industry --option nonsense=1": "unknown batchllm option 'nonsense'",
    "simulate nonsense.jsonl": "nonsense.jsonl cannot be read",
    "bench industry nonsense": "unknown workload 'nonsense'",
    "bench industry --arm nonsense": "unknown arm 'nonsense'",
    "bench industry --order nonsense": "'nonsense' is not allowed",
    "bench industry --option nonsense=1": "unknown batchllm option 'nonsense'",
    "bench industry --engine-option seed=1": "give --seed",
    "bench industry --engine-option kv_cache_type=fp8": "unknown engine option 'kv_cache_type'",
    "bench industry --model /nonsense": "the model folder /nonsense does not exist",
    "calibrate --model /nonsense": "the model folder /nonsense does not exist",
    "plan pyproject.toml --model /nonsense": "the model folder /nonsense does not exist",
}

_CODE = """
import contextlib, io, json, sys, time
from vllm_batchllm.cli import app
ends, before = [], 0.0
for line in json.loads(sys.argv[1]):
    code, said = 0, io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            app(line.split(), prog_name="vllm-batchllm")
        except SystemExit as end:
            code = end.code
    now = time.process_time()
    heavy = sorted({"vllm", "torch", "transformers"} & set(sys.modules))
    ends.append((code, now - before, heavy, said.getvalue()))
    before = now
print(json.dumps(ends))
"""


class End(NamedTuple):
    """Of one command line. heavy: what was loaded by then that takes seconds."""

    code: int
    cpu_s: float
    heavy: list[str]
    said: str


def ends_of(lines: list[str]) -> list[End]:
    """One command line after the other, in a process of their own."""
    asked = [sys.executable, "-c", _CODE, json.dumps(lines)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return [End(*end) for end in json.loads(done.stdout)]


def test_help_is_there_at_once() -> None:
    for end in ends_of(["--help", *(f"{name} --help" for name in COMMANDS)]):
        assert (end.code, end.heavy) == (0, [])
        assert end.cpu_s < MOST_CPU_S


def test_names_are_refused_at_once() -> None:
    for end, words in zip(ends_of(list(REFUSALS)), REFUSALS.values(), strict=True):
        assert (end.code, end.heavy) == (2, []), end.said
        assert words in end.said and "Traceback" not in end.said
        assert end.cpu_s < MOST_CPU_S


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("plan {file} --model {tmp}", "plan.command._check_model", "interrupted"),
        ("arrange {file} {tmp}/out", "jobs.arranged_file.arrange_file", "give the same command"),
        ("calibrate", "calibrate.measurement.calibrate", "the calibration before, if any, stands"),
        ("release --arrival-rate 9 --service-ms 1,1", "release.compare.compare", "interrupted"),
        ("simulate no-sharing", "simulate.setup.check_names", "before a row was finished"),
        ("bench no-sharing", "bench.command.check_arms", "before a workload was finished"),
    ],
)
def test_an_interrupted_command_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, place: str, words: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"vllm_batchllm.{place}", interrupt)
    file = write_lines(tmp_path / "in.jsonl", [{"prompt": "text"}])
    result = CliRunner().invoke(cli.app, line.format(file=file, tmp=tmp_path).split())
    assert result.exit_code == 130, result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [("{tmp}/cache", "{tmp}/cache"), ("", "{tmp}/.cache"), ("relative", "{tmp}/.cache")],
)
def test_what_is_kept_at_home_honours_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_to: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", set_to.format(tmp=tmp_path))
    monkeypatch.delenv(CALIBRATION_FILE, raising=False)
    folder = Path(expected.format(tmp=tmp_path)) / "vllm-batchllm"
    assert cache_folder() == folder
    assert Calibration.path() == folder / "calibration.json"
    assert own_folder() == folder / "attention"


def test_nothing_else_is_kept_at_home() -> None:
    """Whoever writes below the home folder asks `cache_folder`."""
    named = [
        path.name
        for path in Path(cli.__file__).parent.rglob("*.py")
        if "Path.home" in (text := path.read_text(encoding="utf-8")) or '"~/' in text
    ]
    assert named == ["cache_folder.py"]
