# SPDX-License-Identifier: Apache-2.0
"""Sizes that the user left open are raised for our scheduler, and for nobody else."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from fake_platform import DEVICES, ours
from vllm.config import CompilationConfig, VllmConfig
from vllm.usage.usage_lib import UsageContext

from vllm_batchllm.plugin import engine_config, registration
from vllm_batchllm.plugin.engine_config import FILL_IN, batch_sizes

LLM, SERVE = UsageContext.LLM_CLASS, UsageContext.OPENAI_API_SERVER
RUN_BATCH = UsageContext.OPENAI_BATCH_RUNNER


@pytest.fixture(autouse=True)
def loaded() -> None:
    registration.register()


PLAIN_MODEL = {
    "runner_type": "generate",
    "has_inner_state": False,
    "is_hybrid": False,
    "is_multimodal_model": False,
    "max_model_len": 32768,
}


@pytest.fixture
def fill_in(llama, monkeypatch):
    """Run vLLM's own method as on another device; return both sizes, stock's and ours."""

    def both(device: str, context: Any, model: dict[str, Any], moe: bool, given: dict[str, Any]):
        monkeypatch.setattr("vllm.engine.arg_utils.current_platform", DEVICES[device])
        monkeypatch.setattr("vllm.platforms.current_platform", DEVICES[device])
        call = (
            context,
            SimpleNamespace(**PLAIN_MODEL | model),
            SimpleNamespace(use_batched_dp_moe=moe),
        )
        found = []
        for opened in (nullcontext, batch_sizes):
            args = ours(llama, **given)
            args.enable_chunked_prefill = True
            with opened(args):
                getattr(args, FILL_IN)(*call)
            found.append((args.max_num_seqs, args.max_num_batched_tokens))
        return found

    return both


@pytest.mark.parametrize(
    ("device", "context", "stock", "raised"),
    [
        ("a100", LLM, (256, 8192), (512, 8192)),
        ("a100", SERVE, (256, 2048), (512, 8192)),
        ("a100", RUN_BATCH, (128, 2048), (512, 8192)),
        ("h100", LLM, (1024, 16384), (1024, 16384)),
        ("h100", SERVE, (1024, 8192), (1024, 16384)),
        ("h100", RUN_BATCH, (128, 2048), (1024, 16384)),
        ("b200", SERVE, (1024, 16384), (1024, 16384)),
        ("l4", SERVE, (256, 2048), (256, 2048)),
        ("l40s", LLM, (256, 8192), (256, 8192)),
        ("mi210", SERVE, (256, 2048), (512, 8192)),
        ("cpu", LLM, (256, 4096), (1024, 4096)),
        ("cpu", SERVE, (128, 2048), (1024, 4096)),
        ("cpu", RUN_BATCH, (128, 2048), (1024, 4096)),
        ("xpu", SERVE, (256, 2048), (256, 8192)),
    ],
)
def test_by_device_and_front_end(fill_in, device, context, stock, raised) -> None:
    assert fill_in(device, context, {}, False, {}) == [stock, raised]


@pytest.mark.parametrize(
    ("given", "stock", "raised"),
    [
        ({"max_num_seqs": 64}, (64, 2048), (64, 8192)),
        ({"max_num_seqs": 4096}, (4096, 2048), (4096, 8192)),
        ({"max_num_batched_tokens": 300}, (256, 300), (300, 300)),
        ({"max_num_batched_tokens": 100}, (100, 100), (100, 100)),
        ({"max_num_seqs": 9, "max_num_batched_tokens": 99}, (9, 99), (9, 99)),
        ({"max_num_active_seqs": 50}, (256, 2048), (256, 8192)),
        ({"max_num_scheduled_tokens": 400}, (256, 2048), (400, 8192)),
        ({"performance_mode": "throughput"}, (512, 4096), (512, 16384)),
        ({"performance_mode": "interactivity"}, (256, 2048), (256, 2048)),
        ({"speculative_config": {"num_speculative_tokens": 3}}, (256, 2048), (256, 8192)),
        ({"speculative_config": {"method": "mtp"}}, (256, 2048), (256, 8192)),
        ({"diffusion_config": {"canvas_length": 32}}, (256, 2048), (256, 8192)),
        (
            {"compilation_config": CompilationConfig(max_cudagraph_capture_size=1024)},
            (256, 2048),
            (1024, 8192),
        ),
        ({"cudagraph_capture_sizes": [1, 768]}, (256, 2048), (768, 8192)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_user_set_stays_and_bounds_the_rest(fill_in, given, stock, raised) -> None:
    assert fill_in("a100", SERVE, {}, False, given) == [stock, raised]


@pytest.mark.parametrize(
    ("model", "moe", "stock", "raised"),
    [
        ({"runner_type": "pooling"}, False, (256, 2048), (256, 2048)),
        ({"has_inner_state": True}, False, (256, 2048), (256, 8192)),
        ({"max_model_len": 4}, False, (256, 1024), (512, 2048)),
        ({}, True, (256, 256), (256, 256)),  # vLLM's buffers between data-parallel ranks
    ],
)
def test_what_the_model_does_not_bear_is_left_alone(fill_in, model, moe, stock, raised) -> None:
    assert fill_in("a100", SERVE, model, moe, {}) == [stock, raised]


def test_drafts_bound_the_requests_by_what_a_step_holds(fill_in) -> None:
    given = {"speculative_config": {"num_speculative_tokens": 5}}
    assert fill_in("cpu", SERVE, {}, False, given) == [(128, 2048), (4096 // 6, 4096)]


@pytest.mark.parametrize(("family", "expected"), [(90, 512), (100, 1024)])
def test_the_largest_graph_is_as_wide_as_vllm_says(llama, monkeypatch, family, expected) -> None:
    """Ask vLLM's method what it captures for more requests than any graph holds."""
    config = ours(llama, max_num_seqs=4000, max_num_batched_tokens=8192).create_engine_config()
    platform = DEVICES["h100" if family == 90 else "b200"]
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    compilation = CompilationConfig(cudagraph_mode="PIECEWISE")
    stand_in = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=compilation,
        scheduler_config=config.scheduler_config,
        speculative_config=None,
        performance_mode="balanced",
        uniform_decode_query_len=1,
        lora_config=None,
        parallel_config=config.parallel_config,
    )
    VllmConfig._set_cudagraph_sizes(stand_in)
    assert compilation.max_cudagraph_capture_size == expected
    assert engine_config._max_graph_tokens(ours(llama)) == expected
