# SPDX-License-Identifier: Apache-2.0
"""What passes of vLLM's own core tests with its classes passes with ours.

Stock's side is the list recorded by ``make conformance``; here only ours run, both modes at once.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive
import local_models
import pytest
import suites
from comparison import MAX_EXCEPTIONS, compare, load_exceptions
from conformance import CI_MODES, recorded_core
from places import prepared
from runner import Arm, Result, finish, start

from vllm_batchllm.compat import version as vllm_version

TIMEOUT_S, SECOND_TIMEOUT_S = 900, 200
OUT_OF_TIME = re.compile(r"time-?out|timed out", re.IGNORECASE)
"""In why a test failed: pytest's limit, a process's, or a queue's."""
pytestmark = pytest.mark.timeout(TIMEOUT_S + 2 * SECOND_TIMEOUT_S + 60)


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(recorded_core(archive.installed()).read_text())
    return content


@pytest.fixture(scope="session")
def runs(
    tmp_path_factory: pytest.TempPathFactory, recorded: dict[str, Any]
) -> Iterator[dict[str, Result]]:
    """Our run in each mode. What ran out of time is run once more, alone, and is told: some of vLLM's
    tests hold a process to a time that a busy machine misses. Whatever else is lost stays lost."""
    scratch = tmp_path_factory.mktemp("upstream")
    models = local_models.make_models(scratch / "models")
    targets = suites.load(archive.installed())["core"].targets
    started = []
    for mode in CI_MODES:
        folder, log = scratch / mode, scratch / f"{mode}.jsonl"
        folder.mkdir()
        place = prepared(folder, models)
        started.append((mode, place, start(place, Arm("ours", mode), targets, log), log))
    found = {mode: finish(process, log, TIMEOUT_S) for mode, _, process, log in started}
    for mode, place, _, log in started:
        lost = compare(recorded["passed"][mode], found[mode], load_exceptions().get(mode, {})).lost
        late = {test for test in lost if OUT_OF_TIME.search(found[mode].why.get(test, ""))}
        if late and found[mode].whole:
            warnings.warn(f"{mode}: out of time, run again alone: {sorted(late)}", stacklevel=1)
            files = sorted({test.partition("::")[0] for test in late})
            again = log.with_stem(f"{mode}-again")
            second = start(place, Arm("ours", mode), files, again, only=late)
            found[mode].add(finish(second, again, SECOND_TIMEOUT_S))
    yield found


@pytest.mark.parametrize("mode", CI_MODES)
def test_what_passes_with_stock_passes_with_ours(
    mode: str, runs: dict[str, Result], recorded: dict[str, Any]
) -> None:
    found = compare(recorded["passed"][mode], runs[mode], load_exceptions().get(mode, {}))
    assert runs[mode].whole, "the run did not come to its end"
    assert not found.lost, {test: runs[mode].why.get(test) for test in found.lost}
    assert not found.idle, "these exceptions pass: take them off the list"


@pytest.mark.parametrize("mode", CI_MODES)
def test_the_schedulers_under_test_are_ours(mode: str, runs: dict[str, Result]) -> None:
    assert runs[mode].num_built("Scheduler", ours=True) > 100
    assert runs[mode].num_built("BlockPool", ours=True) > 100
    assert runs[mode].num_built("Scheduler", ours=False) == 0


def test_the_record_is_of_the_vllm_that_is_installed(recorded: dict[str, Any]) -> None:
    installed = vllm_version.installed_vllm_version()
    assert installed is not None
    assert installed.partition("+")[0] == recorded["vllm"] == archive.installed().version
    assert recorded["sha256"] == archive.installed().sha256
    assert min(len(recorded["passed"][mode]) for mode in CI_MODES) > 800


def test_few_exceptions_are_made_and_each_says_why() -> None:
    exceptions = load_exceptions()
    assert len({test for listed in exceptions.values() for test in listed}) <= MAX_EXCEPTIONS


def test_an_archive_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / archive.NEXT.file_name).write_bytes(b"something else")
    with pytest.raises(archive.ArchiveError, match=r"vllm-0\.33\.0\.tar\.gz has SHA-256"):
        archive.fetched(archive.NEXT, tmp_path)


def test_a_version_without_a_pin_is_refused_by_name() -> None:
    with pytest.raises(archive.ArchiveError, match=r"pinned for vLLM 0\.99\.0\+cpu, only for 0\.3"):
        archive.pinned("0.99.0+cpu")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["9.9.0"], 0, r'Release("9.9.0", "ba7816bf8f01cfea'),
        (["../x"], 2, ""),
        ([], 2, ""),
    ],
)
def test_the_command_prints_what_is_to_be_pinned(
    words: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(archive, "CACHE", tmp_path)
    monkeypatch.setattr("sys.argv", ["archive.py", *words])
    (tmp_path / "vllm-9.9.0.tar.gz").write_bytes(b"abc")
    assert archive.main() == code
    assert capsys.readouterr().out.startswith(told)
