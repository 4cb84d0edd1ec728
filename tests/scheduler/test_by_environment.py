# SPDX-License-Identifier: Apache-2.0
"""``VLLM_BATCHLLM=1``: ours where nobody chose, the user's where somebody did, vLLM's where ours cannot serve."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from vllm import envs
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.plugin import registration
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    registration.register()
    monkeypatch.setenv("VLLM_BATCHLLM", "1")
    yield


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines that our plugin has logged; vLLM sets its own loggers up anew as it goes."""
    lines: list[str] = []
    logger = logging.getLogger("by_environment")
    logger.setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.handlers = [handler]
    monkeypatch.setattr(registration, "logger", logger)
    return lines


def config_of(llama: str, **more: Any) -> Any:
    return EngineArgs(model=llama, skip_tokenizer_init=True, **more).create_engine_config()


def scheduler_of(llama: str, **more: Any) -> Any:
    return config_of(llama, **more).scheduler_config.scheduler_cls


def test_engines_that_choose_nothing_get_ours_with_a_line(llama: str, told: list[str]) -> None:
    args = EngineArgs(model=llama, skip_tokenizer_init=True)
    config = args.create_engine_config()
    assert config.scheduler_config.scheduler_cls == BATCHLLM_SCHEDULER
    assert args.scheduler_cls is None, "the caller's arguments are as they were"
    lines = [line for line in told if "VLLM_BATCHLLM" in line]
    assert lines == ["Scheduler: batchllm, chosen by VLLM_BATCHLLM"]


@pytest.mark.parametrize("value", ["0", "", "no", "off", "False"])
def test_no_is_no(llama: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VLLM_BATCHLLM", value)
    assert scheduler_of(llama) is None


def test_neither_yes_nor_no_is_refused(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCHLLM", "dfs")
    with pytest.raises(ValueError, match="VLLM_BATCHLLM = 'dfs' is neither yes nor no"):
        config_of(llama)


def test_a_scheduler_of_the_users_wins_with_a_line(llama: str, told: list[str]) -> None:
    theirs = "vllm.v1.core.sched.scheduler.Scheduler"
    assert scheduler_of(llama, scheduler_cls=theirs) == theirs
    lines = [line for line in told if "VLLM_BATCHLLM" in line]
    assert lines == [f"VLLM_BATCHLLM is set, and so is scheduler_cls = {theirs}: that one is used"]
    assert (
        scheduler_of(llama, scheduler_cls=BatchLLMScheduler, async_scheduling=False)
        is BatchLLMScheduler
    )


def test_stock_by_name_wins(llama: str) -> None:
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.parse_args(["--scheduler", "stock"])
    assert scheduler_of(llama) is None
    assert os.environ["VLLM_BATCHLLM"] == "0", "processes to come are told, too"


def test_what_ours_cannot_serve_runs_on_vllms_with_a_line(
    llama: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(llama, enable_prefix_caching=False)
    assert config.scheduler_config.get_scheduler_cls() is Scheduler
    assert not config.cache_config.enable_prefix_caching
    stock = EngineArgs(model=llama, skip_tokenizer_init=True, enable_prefix_caching=False)
    monkeypatch.setenv("VLLM_BATCHLLM", "0")
    sizes = stock.create_engine_config().scheduler_config
    assert config.scheduler_config.max_num_seqs == sizes.max_num_seqs
    lines = [line for line in told if "VLLM_BATCHLLM" in line]
    assert len(lines) == 1 and "vLLM's own scheduler serves" in lines[0]
    assert "prefix caching" in lines[0]


def test_another_vllm_keeps_its_scheduler(
    llama: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_version, "SUPPORTED_MIN", "99.0")
    monkeypatch.setattr(vllm_version, "SUPPORTED_BELOW", "99.1")
    assert scheduler_of(llama) is None
    assert "vLLM's own scheduler serves" in " ".join(told)


def test_bad_options_are_refused_all_the_same(llama: str) -> None:
    with pytest.raises(ValueError, match="'order' = 'random' is not allowed"):
        config_of(llama, additional_config={"batchllm": {"order": "random"}})


def test_vllm_knows_our_names_and_refuses_others(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_BATCHLLM_CALIBRATION", "somewhere")
    before = dict(envs.environment_variables)
    factors = envs.compile_factors()
    config_of(llama, fail_on_environ_validation=True)
    assert envs.environment_variables == before, "nothing is left behind"
    assert envs.compile_factors() == factors, "and no cache has another key"
    monkeypatch.setenv("VLLM_NO_SUCH_NAME", "1")
    with pytest.raises(ValueError, match="VLLM_NO_SUCH_NAME"):
        config_of(llama, fail_on_environ_validation=True)
    assert "VLLM_BATCHLLM" in os.environ
