# SPDX-License-Identifier: Apache-2.0
"""Engines of the benchmark on devices that are not here: vLLM's own sizes, and nothing of the CPU's."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import pytest
from fake_platform import DEVICES
from vllm.engine.arg_utils import EngineArgs

from vllm_batchllm.bench import engine
from vllm_batchllm.bench.device import CPU_SIZES, sizes_here
from vllm_batchllm.bench.engine import (
    EngineSpec,
    arm_kwargs,
    prepare_environment,
    share_cpu_memory,
)
from vllm_batchllm.bench.engine_option_names import engine_option_names
from vllm_batchllm.bench.engine_options import check_engine_options
from vllm_batchllm.errors import UsageError

OF_THE_CPU = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE", "GOMP_SPINCOUNT")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As on a device: whether it is the CPU. The environment is put back."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in OF_THE_CPU:
        os.environ.pop(name, None)

    def become(name: str) -> bool:
        for place in ("vllm.platforms", "vllm.engine.arg_utils"):
            monkeypatch.setattr(f"{place}.current_platform", DEVICES[name])
        monkeypatch.setattr(engine, "is_cpu_build", lambda: name == "cpu")
        return prepare_environment()

    return become


@pytest.mark.parametrize(
    ("name", "tokens", "seqs"),
    [("a100", 8192, 256), ("h100", 16384, 1024), ("b200", 16384, 1024), ("l4", 8192, 256)],
)
def test_a_gpu_has_vllms_own_sizes(on: Any, name: str, tokens: int, seqs: int) -> None:
    on_cpu = on(name)
    here = sizes_here(on_cpu)
    assert not on_cpu
    assert (here.dtype, here.block_size) == ("auto", 16)
    assert (here.max_num_batched_tokens, here.max_num_seqs) == (tokens, seqs)


def test_nothing_of_the_cpu_leaks_to_a_gpu(on: Any) -> None:
    here = sizes_here(on("h100"))
    assert not set(OF_THE_CPU) & os.environ.keys()
    spec = EngineSpec(
        "m", 9, 9, here.block_size, here.dtype, here.max_num_batched_tokens, here.max_num_seqs
    )
    for arm in ("stock", "tuned-0.05", "batchllm"):
        kwargs = arm_kwargs(spec, arm, on_cpu=False)
        assert not {"enforce_eager", "distributed_executor_backend"} & kwargs.keys()
        assert (kwargs["dtype"], kwargs["block_size"]) == ("auto", 16)


@pytest.mark.parametrize(
    ("name", "set_to", "expected"), [("cpu", None, "1"), ("cpu", "7", "7"), ("h100", None, None)]
)
def test_engines_that_size_their_own_kv_share_the_memory_of_a_cpu(
    on: Any, name: str, set_to: str | None, expected: str | None
) -> None:
    on(name)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    if set_to is not None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = set_to
    share_cpu_memory()
    prepare_environment()
    assert os.environ.get("VLLM_CPU_KVCACHE_SPACE") == expected


def test_the_cpu_has_what_is_comparable_there(on: Any) -> None:
    assert sizes_here(on("cpu")) is CPU_SIZES


def test_vllm_looks_at_engine_options_before_an_engine_starts(llama: str) -> None:
    def check(*extra: tuple[str, Any]) -> None:
        check_engine_options(EngineSpec(llama, 9, 64, extra=extra), on_cpu=True)

    check(("kv_cache_dtype", "auto"))
    with pytest.raises(
        UsageError, match=r"unknown engine option 'kv_cache_type'. Close: .*kv_cache_dtype"
    ):
        check(("kv_cache_type", "fp8"))
    with pytest.raises(UsageError, match="vLLM refuses --engine-option 'kv_cache_dtype=nonsense'"):
        check(("kv_cache_dtype", "nonsense"))


def test_the_names_of_engine_options_are_known_without_importing_vllm() -> None:
    names = engine_option_names()
    assert names == [field.name for field in fields(EngineArgs)]
