# SPDX-License-Identifier: Apache-2.0
"""The whole way without a server: real scheduler, vLLM's encoding, vLLM's logger manager."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from fake_engine import make_requests, make_scheduler, make_vllm_config, model_output
from prometheus_client import REGISTRY
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import KV_FETCH_STAGES, SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.scheduler.scheduler import create_scheduler
from vllm_batchllm.stats import loggers
from vllm_batchllm.stats.families import FAMILIES
from vllm_batchllm.stats.transport import CARRIER, CounterTransport

SHARED = list(range(10, 42))
PROMPTS = [SHARED + [100 + n] * 20 for n in range(6)]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    loggers.install()
    yield
    if loggers.BatchLLMStatLogger._shown is not None:
        loggers.BatchLLMStatLogger._shown.close()


def manager_for(llama: str, scheduler_cls: Any, engines: list[int] | None = None) -> Any:
    """vLLM's manager of stat loggers, as a front end builds it."""
    config = make_vllm_config(llama)
    config.scheduler_config.scheduler_cls = scheduler_cls
    return StatLoggerManager(config, engine_idxs=engines)


def over_the_wire(stats: SchedulerStats) -> SchedulerStats:
    """As another process gets it."""
    sent = MsgpackEncoder().encode(EngineCoreOutputs(scheduler_stats=stats))
    return MsgpackDecoder(EngineCoreOutputs).decode(sent).scheduler_stats


def run(scheduler: Scheduler, prompts: list[list[int]] = PROMPTS) -> Iterator[SchedulerStats]:
    """Statistics of every step, as the front end gets them."""
    for request in make_requests(prompts):
        scheduler.add_request(request)
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        outputs = scheduler.update_from_output(output, model_output(scheduler, output))
        yield over_the_wire(next(iter(outputs.values())).scheduler_stats)


def clip(name: str, engine: str = "0", **labels: str) -> float | None:
    all_labels = {"engine": engine, "model_name": served_name()} | labels
    return REGISTRY.get_sample_value(f"vllm_batchllm:{name}", all_labels)


def served_name() -> str:
    """Value of the label model_name, which must be that of vLLM's own metrics."""
    names = {
        sample.labels["model_name"]
        for family in REGISTRY.collect()
        if family.name.startswith(("vllm:num_requests", "vllm_batchllm:"))
        for sample in family.samples
    }
    assert len(names) == 1
    return names.pop()


def names_of_ours() -> set[str]:
    return {f.name for f in REGISTRY.collect() if f.name.startswith("vllm_batchllm:")}


def test_what_the_scheduler_counts_is_what_a_scrape_shows(llama) -> None:
    manager = manager_for(llama, BATCHLLM_SCHEDULER)
    scheduler = make_scheduler(create_scheduler, make_vllm_config(llama))
    scheduler.batchllm_transport = CounterTransport(
        clock=itertools.count().__next__
    )  # due at every step
    before = 0.0
    for stats in run(scheduler):
        manager.record(stats, None)
        assert set(getattr(stats, CARRIER)) == set(KV_FETCH_STAGES), "vLLM's own, ours taken out"
        now = clip("steps_total")
        assert now == before + 1
        before = now
    counters = scheduler.batchllm_counters
    assert clip("admitted_requests_total") == counters.num_admitted == len(PROMPTS)
    assert clip("prompt_tokens_total") == counters.prompt_tokens == 6 * 52
    assert clip("computed_prompt_tokens_total") == counters.computed_prompt_tokens == 6 * 52 - 160
    levels = [str(level) for level in range(1, 8)] + ["8+", "other"]
    hits = sum(clip("admission_hit_tokens_total", level=level) for level in levels)
    assert hits == counters.admission_hit_tokens == 5 * 32
    assert clip("plan_seconds_total") == pytest.approx(scheduler.waiting.plan_s, abs=1e-4)
    assert clip("kv_blocks") == counters.kv_blocks > 0


def test_each_engine_has_its_own_samples(llama) -> None:
    manager = manager_for(llama, BATCHLLM_SCHEDULER, engines=[0, 1])
    for stats in run(make_scheduler(create_scheduler, make_vllm_config(llama)), PROMPTS[:2]):
        manager.record(stats, None, engine_idx=1)
    assert clip("admitted_requests_total", engine="0") == 0
    assert clip("admitted_requests_total", engine="1") == 2


def test_another_scheduler_shows_nothing_and_carries_nothing(llama) -> None:
    plain = {type(each) for each in manager_for(llama, None).stat_loggers}
    assert loggers.BatchLLMStatLogger not in plain
    assert names_of_ours() == set()
    for stats in run(make_scheduler(Scheduler, make_vllm_config(llama)), PROMPTS[:2]):
        assert not [key for key in getattr(stats, CARRIER) if "batchllm" in key]


def test_without_statistics_the_scheduler_sends_none(llama) -> None:
    scheduler = make_scheduler(create_scheduler, make_vllm_config(llama))
    scheduler.log_stats = False
    assert scheduler.make_stats() is None


def test_ours_is_first_and_the_rest_is_as_stock_has_it(llama) -> None:
    stock = [type(each) for each in manager_for(llama, None).stat_loggers]
    ours = [type(each) for each in manager_for(llama, BATCHLLM_SCHEDULER).stat_loggers]
    assert ours == [loggers.BatchLLMStatLogger, *stock]


def test_installing_again_and_a_second_engine_change_nothing(llama) -> None:
    loggers.install()
    for _ in range(2):
        manager = manager_for(llama, BATCHLLM_SCHEDULER)
    assert [type(each) for each in manager.stat_loggers].count(loggers.BatchLLMStatLogger) == 1
    assert len(names_of_ours()) == len(FAMILIES)


def test_choosing_the_scheduler_is_all_it_takes(llama, monkeypatch) -> None:
    load_general_plugins()
    installed = []
    monkeypatch.setattr(loggers, "install", lambda: installed.append(True))
    EngineArgs(model=llama, skip_tokenizer_init=True).create_engine_config()
    assert not installed
    ours = EngineArgs(model=llama, skip_tokenizer_init=True, scheduler_cls=BATCHLLM_SCHEDULER)
    ours.create_engine_config()
    assert installed
    monkeypatch.setattr(loggers, "install", lambda: 1 / 0)
    assert ours.create_engine_config().model_config.model == llama, "metrics must not stop a start"


def test_a_failing_set_up_or_record_leaves_the_server_up(llama, monkeypatch) -> None:
    manager = manager_for(llama, BATCHLLM_SCHEDULER)
    logger = Mock()
    monkeypatch.setattr(loggers, "logger", logger)
    for _ in range(2):
        manager.stat_loggers[0].record(object(), None)
    logger.warning.assert_called_once()
    assert "cannot be recorded" in logger.warning.call_args.args[0]

    def broken(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(loggers, "Exporter", broken)
    manager = manager_for(llama, BATCHLLM_SCHEDULER)
    assert loggers.BatchLLMStatLogger not in map(type, manager.stat_loggers)
    assert "cannot be set up" in logger.warning.call_args.args[0]
