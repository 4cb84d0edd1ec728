# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of an engine's config: real ones, of this machine and of devices that are not here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import make_vllm_config
from test_attention_choice import on_gpu  # noqa: F401 - a fixture

from vllm_batchllm.doctor import engine_check


def test_a_real_config_on_this_machine(llama: str) -> None:
    lines = [str(line) for line in engine_check.check_engine(llama, "float32")]
    assert all(line.startswith("ok") for line in lines)
    told = "\n".join(lines)
    assert "BatchLLMScheduler (synchronous scheduling)" in told
    assert "prefix caching is on" in told
    assert "blocks of 32 tokens; max_num_seqs 128 -> 1024 (fix it with --max-num-seqs)" in told
    assert "attention backend CPU_ATTN" in told
    assert "shared attention is off: " in told and "no CUDA graphs" in told


@pytest.mark.parametrize("is_async", [False, True])
def test_the_leaf_that_fits(llama: str, is_async: bool) -> None:
    config = make_vllm_config(llama, async_scheduling=is_async)
    name = "AsyncBatchLLMScheduler (asynchronous" if is_async else " BatchLLMScheduler (synchronous"
    assert name in engine_check.leaf(config, config).text


def test_shared_attention_on_a_device_without_a_record(on_gpu: Any) -> None:  # noqa: F811
    told = engine_check.shared_attention(on_gpu(), None).text
    assert "off: no record for NVIDIA H100 80GB HBM3" in told and "benchmarks/gpu/engine.py" in told


@pytest.mark.parametrize(
    ("mode", "captured", "num_seqs", "level", "told"),
    [
        ("NONE", [1, 2], 8, "ok", "no CUDA graphs"),
        ("FULL", [1, 2, 512], 512, "ok", "CUDA graphs (FULL) of 3 sizes, up to 512 tokens"),
        ("FULL", [1, 256], 512, "note", "up to max_num_seqs 512, run without"),
    ],
)
def test_graphs(mode: str, captured: list[int], num_seqs: int, level: str, told: str) -> None:
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(
            cudagraph_mode=SimpleNamespace(name=mode), cudagraph_capture_sizes=captured
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=num_seqs),
    )
    finding = engine_check.graphs(config, None)
    assert finding.level == level and told in finding.text


def test_a_part_that_vllm_does_not_tell_leaves_the_others(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.v1.attention.selector.get_attn_backend", lambda *_, **__: 1 / 0)
    lines = list(engine_check.check_engine(llama, "float32"))
    assert [line.level for line in lines].count("note") == 1
    assert any("could not be found out: ZeroDivisionError" in line.text for line in lines)
    assert "no CUDA graphs" in lines[-1].text
