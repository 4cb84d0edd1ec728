# SPDX-License-Identifier: Apache-2.0
"""The arms get the same engine; whatever else differs stops the benchmark."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.bench import engine
from vllm_batchllm.bench.config_diff import config_differences
from vllm_batchllm.bench.engine import (
    BATCHLLM_SCHEDULER,
    TUNED,
    EngineSpec,
    arm_kwargs,
    engine_kwargs,
    prepare_environment,
    scheduler_of,
)
from vllm_batchllm.bench.engines import Engines
from vllm_batchllm.errors import UsageError

SPEC = EngineSpec(model="m", kv_blocks=100, max_model_len=300)

specs = st.builds(
    EngineSpec,
    model=st.just("m"),
    kv_blocks=st.integers(1, 999),
    max_model_len=st.integers(1, 999),
    block_size=st.sampled_from([16, 32]),
    lengths_known=st.booleans(),
    batchllm_options=st.sampled_from([(), (("order", "dfs"),)]),
    extra=st.sampled_from([(), (("additional_config", {"other": 1}),)]),
)


@given(spec=specs, on_cpu=st.booleans())
def test_arms_differ_in_the_scheduler_and_nothing_else(spec: EngineSpec, on_cpu: bool) -> None:
    stock = arm_kwargs(spec, "stock", on_cpu=on_cpu)
    assert stock == arm_kwargs(spec, "sorted", on_cpu=on_cpu) == engine_kwargs(spec, on_cpu=on_cpu)
    ours = arm_kwargs(spec, "batchllm", on_cpu=on_cpu)
    assert ours.pop("scheduler_cls") == BATCHLLM_SCHEDULER
    additional = dict(ours.pop("additional_config", {}))
    assert additional.pop("batchllm", {}) == dict(spec.batchllm_options)
    assert additional == dict(stock.pop("additional_config", {}))
    assert ours == stock


def test_cpu_settings_do_not_leak_to_gpus() -> None:
    cpu_only = {"distributed_executor_backend", "enforce_eager"}
    assert cpu_only <= engine_kwargs(SPEC, on_cpu=True).keys()
    assert not cpu_only & engine_kwargs(SPEC, on_cpu=False).keys()


@pytest.mark.parametrize(
    ("cpu_build", "already", "expected"),
    [(True, None, "1000"), (True, "7", "7"), (False, None, None)],
)
def test_threads_spin_briefly_on_cpu_builds_unless_the_user_decided(
    monkeypatch: pytest.MonkeyPatch, cpu_build: bool, already: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(engine, "is_cpu_build", lambda: cpu_build)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", already or "")
    if already is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    prepare_environment()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_wait_policy_of_the_user_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "is_cpu_build", lambda: True)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    prepare_environment()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'batchlm'.*'batchllm'"):
        arm_kwargs(SPEC, "batchlm", on_cpu=True)


@dataclass
class FakeSchedulerConfig:
    max_num_seqs: int = 256
    scheduler_cls: str | None = None


@dataclass
class FakeConfig:
    scheduler_config: FakeSchedulerConfig = field(default_factory=FakeSchedulerConfig)
    additional_config: dict[str, Any] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    instance_id: str = "a"
    lock: object = field(default_factory=object)


def test_scheduler_identity_and_addresses_are_no_difference() -> None:
    ours = FakeConfig(
        FakeSchedulerConfig(scheduler_cls="x"), {"batchllm": {"order": "dfs"}}, instance_id="b"
    )
    assert config_differences(FakeConfig(), ours) == []


@pytest.mark.parametrize(
    ("other", "path"),
    [
        (FakeConfig(FakeSchedulerConfig(max_num_seqs=8)), "scheduler_config.max_num_seqs"),
        (FakeConfig(additional_config={"else": 1}), "additional_config.else"),
        (FakeConfig(sizes=[1, 3]), "sizes.1"),
        (FakeConfig(sizes=[1]), "sizes.len"),
        (FakeConfig(lock=[]), "lock"),
    ],
)
def test_any_other_field_is_a_difference(other: FakeConfig, path: str) -> None:
    assert any(text.startswith(path) for text in config_differences(FakeConfig(), other))


def engine_with(config: FakeConfig) -> SimpleNamespace:
    return SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))


def test_engines_that_differ_are_refused_with_the_field_and_both_values() -> None:
    engines = Engines(
        {
            "stock": engine_with(FakeConfig()),
            "batchllm": engine_with(FakeConfig(FakeSchedulerConfig(max_num_seqs=8))),
        }
    )
    with pytest.raises(UsageError, match="max_num_seqs: 256 and 8"):
        engines.check()


def test_sorted_runs_in_the_engine_of_stock() -> None:
    stock = engine_with(FakeConfig())
    engines = Engines({"stock": stock})
    assert engines.for_arm("sorted") is engines.for_arm("stock") is stock
    with pytest.raises(UsageError, match="'batchllm' needs the engine"):
        engines.for_arm("batchllm")


def test_an_engine_in_another_process_is_refused() -> None:
    remote = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=object()))
    with pytest.raises(UsageError, match="VLLM_ENABLE_V1_MULTIPROCESSING"):
        scheduler_of(remote)


@pytest.mark.parametrize("arm", TUNED)
def test_tuned_is_not_sorted(arm: str) -> None:
    """Throughput mode doubles what nobody has set, and the watermark is another one in any case."""
    spec = EngineSpec(model="m", kv_blocks=9, max_model_len=9)
    plain, tuned = (arm_kwargs(spec, each, on_cpu=True) for each in ("sorted", arm))
    assert tuned["max_num_seqs"] == 2 * plain["max_num_seqs"]
    assert tuned["max_num_batched_tokens"] == 2 * plain["max_num_batched_tokens"]
    assert tuned["watermark"] > 0 and "watermark" not in plain
    rest = {"max_num_seqs", "max_num_batched_tokens", "watermark"}
    assert {k: v for k, v in tuned.items() if k not in rest} == {
        k: v for k, v in plain.items() if k not in rest
    }
    by_user = arm_kwargs(replace(spec, set_sizes=("max_num_seqs",)), arm, on_cpu=True)
    assert by_user["max_num_seqs"] == plain["max_num_seqs"]
    assert by_user["max_num_batched_tokens"] == tuned["max_num_batched_tokens"]
    assert by_user["watermark"] == tuned["watermark"]


def test_tuned_engines_may_differ_in_what_tunes_them_and_in_nothing_else() -> None:
    larger = engine_with(FakeConfig(FakeSchedulerConfig(max_num_seqs=512)))
    Engines({"sorted": engine_with(FakeConfig()), "tuned-0.02": larger}).check()
    with pytest.raises(UsageError, match="max_num_seqs: 256 and 512"):
        Engines({"sorted": engine_with(FakeConfig()), "batchllm": larger}).check()
