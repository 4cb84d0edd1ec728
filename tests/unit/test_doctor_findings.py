# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm doctor`: what each check says of an installation, a device, an A/B; and that none breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_batchllm import cli
from vllm_batchllm.compat import version
from vllm_batchllm.doctor import command, devices, installation
from vllm_batchllm.doctor.comparison import findings_of
from vllm_batchllm.doctor.finding import Finding, guarded, is_well, to_json
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import ABResult, OutputMatch, RunInputs, run_metrics
from vllm_batchllm.measure.recorder import StepRecord

GIB = 2**30
OURS = metadata.EntryPoint("batchllm", installation.ENTRY_POINT, installation.GROUP)


def install(monkeypatch: pytest.MonkeyPatch, vllm: str | None, *entries: Any) -> None:
    monkeypatch.setattr(version, "installed_vllm_version", lambda: vllm)
    monkeypatch.setattr(installation.metadata, "entry_points", lambda group: list(entries))


@pytest.mark.parametrize(
    ("installed", "skip", "level", "told"),
    [
        (None, "", "problem", "is not installed (supported: >= 0.32.0, < 0.34)"),
        ("0.33.1", "", "ok", "0.33.1 is installed"),
        ("0.34.0", "", "problem", "0.34.0 is installed, which is not supported"),
        ("0.34.0", "1", "note", "let through by VLLM_BATCHLLM_SKIP_VERSION_CHECK"),
    ],
)
def test_the_installed_vllm(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, skip: str, level: str, told: str
) -> None:
    install(monkeypatch, installed)
    monkeypatch.setenv(version.SKIP_VERSION_CHECK, skip)
    (finding,) = installation.check_vllm()
    assert finding.level == level and told in finding.text
    assert bool(finding.way_out) == (level == "problem")


@pytest.mark.parametrize(
    ("entries", "plugins", "level", "told"),
    [
        ([OURS], None, "ok", "vLLM finds it"),
        ([OURS], "other,batchllm", "ok", "VLLM_PLUGINS names it"),
        ([OURS], "other", "problem", "set it to other,batchllm"),
        ([OURS], "", "problem", "set it to batchllm"),
        ([], None, "problem", "PYTHONPATH is not enough"),
        ([metadata.EntryPoint("batchllm", "else:where", "g")], None, "problem", "'else:where'"),
    ],
)
def test_whether_vllm_finds_the_plugin(
    monkeypatch: pytest.MonkeyPatch, entries: list[Any], plugins: str | None, level: str, told: str
) -> None:
    install(monkeypatch, "0.32.0", *entries)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    (finding,) = installation.check_plugin()
    assert finding.level == level and told in str(finding)


@pytest.mark.parametrize(
    ("value", "level", "told"),
    [
        ("1", "ok", "every engine that has no scheduler of its own gets ours"),
        ("0", "ok", "engines have vLLM's own scheduler"),
        ("maybe", "problem", "neither yes nor no"),
    ],
)
def test_what_the_environment_chooses(
    monkeypatch: pytest.MonkeyPatch, value: str, level: str, told: str
) -> None:
    monkeypatch.setenv("VLLM_BATCHLLM", value)
    (finding,) = installation.check_environment()
    assert finding.level == level and told in finding.text


class FakePlatform:
    """What is asked of vLLM's platform; ``gpus`` by name and GiB, None for one that does not answer."""

    device_name = "xpu"

    def __init__(self, kind: str, *gpus: tuple[str, int] | None) -> None:
        self.kind, self.gpus = kind, gpus

    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    def is_cuda_alike(self) -> bool:
        return self.kind == "cuda"

    def is_unspecified(self) -> bool:
        return self.kind == "none"

    def device_count(self) -> int:
        return len(self.gpus)

    def get_device_name(self, index: int) -> str:
        gpu = self.gpus[index]
        if gpu is None:
            raise RuntimeError("NVML: driver\nmismatch")
        return gpu[0]

    def get_device_total_memory(self, index: int) -> int:
        gpu = self.gpus[index]
        assert gpu is not None
        return gpu[1] * GIB

    def get_device_capability(self, index: int) -> Any:
        return SimpleNamespace(major=9, minor=0)


def test_devices_by_name_and_one_that_does_not_answer() -> None:
    h100, l4 = ("NVIDIA H100 80GB HBM3", 80), ("NVIDIA L4", 24)
    first, second, third, last = devices.describe(FakePlatform("cuda", h100, l4, None))
    assert first == Finding("ok", "device", "GPU 0: NVIDIA H100 80GB HBM3, 80 GiB, capability 9.0")
    assert "NVIDIA L4, 24 GiB" in second.text and "below 60 GiB vLLM's own sizes" in second.text
    assert third.level == "note" and "RuntimeError: NVML: driver mismatch" in third.text
    assert "measured on a GPU" in last.text


@pytest.mark.parametrize(
    ("kind", "level", "told"),
    [
        ("cpu", "ok", "CPU: "),
        ("cuda", "problem", "sees none"),
        ("none", "problem", "finds no device"),
        ("xpu", "note", "'xpu': the plugin was never tried"),
    ],
)
def test_platforms(kind: str, level: str, told: str) -> None:
    (finding,) = devices.describe(FakePlatform(kind))
    assert finding.level == level and told in finding.text


def result_of(stock: int, ours: int, times: list[float], num_equal: int) -> ABResult:
    """times: stock's of each round, beside 1 s of ours."""
    inputs = RunInputs(10, 1000, 20, 800)
    runs = [
        run_metrics(arm, number, inputs, StepRecord(computed_prompt_tokens=tokens), seconds)
        for number, stock_s in enumerate(times)
        for arm, tokens, seconds in (("stock", stock, stock_s), ("batchllm", ours, 1.0))
    ]
    match = OutputMatch("batchllm", 10, num_equal, 0)
    return ABResult({}, {}, ("stock", "batchllm"), tuple(runs), (match,))


def test_an_ab_in_three_lines() -> None:
    lines = list(findings_of(result_of(900, 400, [1.5, 1.6, 1.7], 10), on_cpu=True))
    assert [line.level for line in lines] == ["ok"] * 3
    assert lines[0].text == "of 1,000 prompt tokens stock computed 900, batchllm 400"
    assert lines[1].text == "stock's time / batchllm's: 1.60 (1.50–1.70 in 3 rounds)"
    assert lines[2].text.startswith("100.0% of 10 answers equal stock's")


def test_an_ab_in_which_ours_is_worse() -> None:
    worse = result_of(400, 900, [0.80, 0.81, 0.82], 9)
    tokens, times, answers = findings_of(worse, on_cpu=True)
    assert (tokens.level, times.level, answers.level) == ("problem", "note", "problem")
    assert "slower here" in times.text and "90.0%" in answers.text
    assert list(findings_of(worse, on_cpu=False))[2].level == "note"


def test_a_spread_larger_than_the_effect_shows_nothing() -> None:
    times = list(findings_of(result_of(400, 400, [0.7, 1.0, 1.3], 10), on_cpu=True))[1]
    assert times.level == "ok" and times.text.endswith("no difference shown")


def test_a_check_that_breaks_says_so_and_the_others_go_on() -> None:
    def breaks() -> Iterator[Finding]:
        yield Finding("ok", "a", "first")
        raise SystemExit(3)

    assert list(guarded("a", breaks, "problem", "mend it")) == [
        Finding("ok", "a", "first"),
        Finding("problem", "a", "could not be found out: SystemExit: 3", "mend it"),
    ]


def test_what_a_user_can_mend_is_told_as_it_is() -> None:
    def refuses() -> Iterator[Finding]:
        yield from ()
        raise UsageError("x is not a model folder")

    assert list(guarded("model", refuses, "problem")) == [
        Finding("problem", "model", "x is not a model folder")
    ]


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(cli.app, ["doctor", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def test_without_vllm_it_says_so_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None, OURS)
    monkeypatch.setattr(command, "_in_folder", lambda *_: pytest.fail("nothing to ask"))
    result = run()
    assert result.exit_code == 1
    assert result.stdout.startswith("problem  vLLM              is not installed")
    assert "-> pip install 'vllm" in result.stdout


def test_a_temporary_folder_that_cannot_be_made_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "0.32.0", OURS)

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.tempfile, "TemporaryDirectory", full)
    result = run("--quick")
    assert result.exit_code == 1
    assert "could not be found out: OSError: [Errno 28] No space left" in result.stdout


def test_json_and_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    for level, code in (("ok", 0), ("note", 0), ("problem", 1)):
        finding = Finding(level, "engine", "a line", "a way out")  # type: ignore[arg-type]
        monkeypatch.setattr(command, "examine", lambda *_, finding=finding: iter([finding]))
        result = run("--json")
        assert result.exit_code == code
        told = json.loads(result.stdout)
        assert told == {"well": not code, "findings": [finding._asdict()]}
        assert is_well([finding]) != code and to_json([finding]) + "\n" == result.stdout
