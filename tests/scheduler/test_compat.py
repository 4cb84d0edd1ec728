# SPDX-License-Identifier: Apache-2.0
"""The version gate, and one function for each difference between the supported versions."""

from __future__ import annotations

import pytest
from fake_engine import make_request, make_scheduler, make_vllm_config, model_output
from typer.testing import CliRunner
from vllm.exceptions import VLLMValidationError
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.engine import FinishReason

import vllm_batchllm
from vllm_batchllm import cli
from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.compat.features import end_with_error
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

RELEASES = ["0.32.0", "0.32.0+cpu", "0.32.1", "0.32.9.post1", "0.33.0", "0.33.0+cpu", "0.33.4"]
OTHERS = ["0.31.9", "0.34.0", "0.34.0rc1", "1.0", "nonsense"]
DEVELOPMENT_BUILDS = ["0.32.0rc1", "0.32.1.dev245+gabcdef0", "0.33.1rc2.dev3", "0.1.dev1"]


def test_the_queue_interface_has_not_grown() -> None:
    assert RequestQueue.__abstractmethods__ <= set(vars(PrefixGroupQueue))


@pytest.mark.parametrize("version", RELEASES)
def test_supported_versions_pass(version, monkeypatch) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm_version", lambda: version)
    vllm_version.check_vllm_version()


@pytest.mark.parametrize("version", [*OTHERS, *DEVELOPMENT_BUILDS, None])
def test_unsupported_versions_are_refused_by_name(version, monkeypatch) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm_version", lambda: version)
    with pytest.raises(vllm_version.UnsupportedVLLMError, match=r">= 0\.32\.0, < 0\.34") as refusal:
        vllm_version.check_vllm_version()
    text = str(refusal.value)
    assert (f"vLLM {version} is installed" if version else "not installed") in text
    assert vllm_version.SKIP_VERSION_CHECK in text
    assert "`vllm-batchllm plan` on prompts and token ids" in text
    monkeypatch.setenv(vllm_version.SKIP_VERSION_CHECK, "1")
    if version is not None:
        vllm_version.check_vllm_version()  # at the user's own risk: no refusal


@pytest.mark.parametrize("name", ["LLM", "SamplingParams"])
@pytest.mark.parametrize("version", ["0.31.9", None])
def test_what_needs_vllm_is_refused_before_any_of_it_is_imported(
    name, version, monkeypatch
) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm_version", lambda: version)
    monkeypatch.setattr(
        "importlib.import_module", {"vllm_batchllm.compat.version": vllm_version}.__getitem__
    )
    with pytest.raises(vllm_version.UnsupportedVLLMError, match="installed"):
        getattr(vllm_batchllm, name)


@pytest.mark.parametrize("command", ["bench", "simulate", "calibrate"])
@pytest.mark.parametrize("version", ["0.34.0", None])
def test_commands_that_need_vllm_are_refused_in_one_line(command, version, monkeypatch) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm_version", lambda: version)
    result = CliRunner().invoke(cli.app, [command])
    assert result.exit_code == cli.EXIT_USAGE
    assert result.stderr.startswith("error: vLLM ") and ">= 0.32.0, < 0.34" in result.stderr
    assert result.stdout == ""
    assert CliRunner().invoke(cli.app, [command, "--help"]).exit_code == 0


def test_a_request_that_is_to_fail_ends_and_its_reason_travels_where_vllm_takes_one(llama) -> None:
    scheduler = make_scheduler(BatchLLMScheduler, make_vllm_config(llama))
    for name in ("fails", "goes on"):
        scheduler.add_request(make_request(name, range(40)))
    takes_reasons = isinstance(scheduler.grammar_compile_error_reqs, dict)
    end_with_error(scheduler, "fails", "too long for anything")
    step = scheduler.schedule()
    (sent,) = scheduler.update_from_output(step, model_output(scheduler, step)).values()
    (failed,) = [each for each in sent.outputs if each.finish_reason is FinishReason.ERROR]
    assert failed.request_id == "fails"
    if takes_reasons:
        error = failed.error.to_exception()
        assert isinstance(error, VLLMValidationError) and str(error) == "too long for anything"
    assert set(scheduler.requests) == {"goes on"}
