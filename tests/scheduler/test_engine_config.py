# SPDX-License-Identifier: Apache-2.0
"""Real configs: sizes and blocks of ours, vLLM's own for everybody else, one line that tells."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from fake_platform import DEVICES, ours, sizes_of
from vllm.config import CacheConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.entrypoints.launchers.run_batch import make_arg_parser as run_batch_parser
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm_moved import serve_parser

from vllm_batchllm.compat.features import planned_block_size
from vllm_batchllm.plugin import engine_config, registration
from vllm_batchllm.plugin.engine_config import FILL_IN, ChosenSizes, batch_sizes
from vllm_batchllm.plugin.engine_sizes import CPU_BLOCK_SIZE, CPU_STOCK_BLOCK_SIZE

LLM, SERVE = UsageContext.LLM_CLASS, UsageContext.OPENAI_API_SERVER
RUN_BATCH = UsageContext.OPENAI_BATCH_RUNNER


def stock_arguments(llama: str) -> EngineArgs:
    return EngineArgs(model=llama, skip_tokenizer_init=True)


@pytest.fixture(autouse=True)
def loaded() -> None:
    registration.register()


@pytest.mark.parametrize(
    ("given", "expected", "told"),
    [
        (
            {},
            (1024, 4096, 32),
            [
                "max_num_seqs 128 -> 1024 (fix it with --max-num-seqs)",
                "max_num_batched_tokens 2048 -> 4096 (fix it with --max-num-batched-tokens)",
                "block_size 128 -> 32 (fix it with --block-size)",
            ],
        ),
        ({"block_size": 128, "max_num_seqs": 5, "max_num_batched_tokens": 77}, (5, 77, 128), []),
        (
            {"block_size": 64, "max_num_batched_tokens": 200},
            (200, 200, 64),
            ["max_num_seqs 128 -> 200 (fix it with --max-num-seqs)"],
        ),
    ],
)
def test_a_real_config_and_one_line_that_tells(llama, monkeypatch, given, expected, told) -> None:
    lines: list[str] = []  # vLLM's logging may or may not hand records on to pytest
    monkeypatch.setattr(engine_config.logger, "info", lambda text, *some: lines.append(text % some))
    args = ours(llama, **given)
    config = args.create_engine_config(SERVE)
    assert sizes_of(config) == expected
    start = "Sizes for a batch instead of vLLM's defaults: "
    assert lines == ([start + "; ".join(told)] if told else [])
    assert FILL_IN not in vars(args)


@pytest.mark.parametrize(
    ("make_parser", "words", "context"),
    [
        (serve_parser, [], SERVE),
        (run_batch_parser, ["-i", "in.jsonl", "-o", "out.jsonl"], RUN_BATCH),
    ],
)
def test_the_command_lines_of_vllm_get_the_same(llama, make_parser, words, context) -> None:
    parser = make_parser(FlexibleArgumentParser())
    words = [*words, "--model", llama, "--skip-tokenizer-init"]

    def config_for(*more: str) -> VllmConfig:
        args = AsyncEngineArgs.from_cli_args(parser.parse_args([*words, *more]))
        return args.create_engine_config(context)

    assert sizes_of(config_for("--scheduler", "batchllm")) == (1024, 4096, 32)
    assert sizes_of(config_for("--scheduler", "batchllm", "--max-num-seqs=9"))[0] == 9
    assert sizes_of(config_for("--scheduler", "stock")) == sizes_of(config_for())
    assert sizes_of(config_for())[:2] == (128, 2048)
    assert planned_block_size(config_for(), CPU_STOCK_BLOCK_SIZE) == CPU_STOCK_BLOCK_SIZE


@pytest.mark.parametrize("context", [None, *UsageContext])
@pytest.mark.parametrize("scheduler_cls", [None, "vllm.v1.core.sched.scheduler.Scheduler"])
def test_stock_runs_get_exactly_vllms_sizes(llama, context, scheduler_cls) -> None:
    def args() -> EngineArgs:
        return EngineArgs(
            model=llama,
            skip_tokenizer_init=True,
            scheduler_cls=scheduler_cls,
            additional_config={"batchllm": {"order": "dfs"}},
        )

    by_vllm = inspect.unwrap(EngineArgs.create_engine_config)(args(), context)
    config = args().create_engine_config(context)
    assert sizes_of(config) == sizes_of(by_vllm)
    assert config.scheduler_config == by_vllm.scheduler_config
    assert not config.cache_config.user_specified_block_size


def test_vllms_class_keeps_its_own_method(llama) -> None:
    before = getattr(EngineArgs, FILL_IN)
    args = ours(llama, max_num_seqs=0)
    with pytest.raises(ValueError, match="max_num_seqs"):
        args.create_engine_config()
    assert getattr(EngineArgs, FILL_IN) is before
    assert FILL_IN not in vars(args)


@pytest.mark.parametrize(
    ("facts", "fits"),
    [
        ({}, True),
        ({"use_mla": True}, False),
        ({"is_hybrid": True}, False),
        ({"has_inner_state": True}, False),
        ({"user_specified_block_size": True}, False),
        ({"num_gpu_blocks_override": 100}, False),
        ({"prefix_match_unit": 128}, False),
        ({"kv_transfer_config": object()}, False),
    ],
)
@pytest.mark.parametrize("chosen", [CPU_STOCK_BLOCK_SIZE, CacheConfig.DEFAULT_BLOCK_SIZE])
def test_blocks_that_are_not_free_to_shrink_keep_their_size(facts, fits, chosen) -> None:
    """Chosen by the platform, as in vLLM 0.32, or not yet, as in 0.33."""
    known: dict[str, Any] = dict.fromkeys(("use_mla", "is_hybrid", "has_inner_state"), False)
    known |= dict.fromkeys(
        ("num_gpu_blocks_override", "prefix_match_unit", "kv_transfer_config"), None
    )
    known["user_specified_block_size"] = False
    things = SimpleNamespace(block_size=chosen, **known | facts)
    sizes = ChosenSizes()
    sizes.settle(
        SimpleNamespace(
            cache_config=things, model_config=things, kv_transfer_config=things.kv_transfer_config
        )
    )
    assert things.block_size == (CPU_BLOCK_SIZE if fits else chosen)
    assert sizes.changes == (["block_size 128 -> 32 (fix it with --block-size)"] if fits else [])
    assert things.user_specified_block_size or not fits


@pytest.mark.parametrize("device", ["h100", "mi210", "xpu"])
def test_the_block_size_of_the_cpu_stays_on_the_cpu(llama, monkeypatch, device) -> None:
    args = ours(llama)
    with batch_sizes(args) as sizes:
        config = inspect.unwrap(EngineArgs.create_engine_config)(args)
    before = config.cache_config.block_size
    monkeypatch.setattr("vllm.platforms.current_platform", DEVICES[device])
    sizes.settle(config)
    assert config.cache_config.block_size == before


@pytest.mark.parametrize(("arguments", "block_size"), [(ours, 32), (stock_arguments, 128)])
def test_the_block_size_is_the_same_once_the_executor_has_started(
    llama, monkeypatch, arguments, block_size
) -> None:
    """vLLM 0.33 fills in the CPU's block size there: neither over ours, nor another than expected."""
    config = arguments(llama).create_engine_config()
    assert planned_block_size(config, CPU_STOCK_BLOCK_SIZE) == block_size
    monkeypatch.setattr(
        type(current_platform), "_find_non_ssm_backends", lambda *_: [CPUAttentionBackend]
    )
    current_platform.update_block_size_for_backend(config)
    assert config.cache_config.block_size == block_size


def test_every_kernel_of_the_cpu_takes_the_block_size() -> None:
    assert CPUAttentionBackend.supports_block_size(CPU_BLOCK_SIZE)
    assert CPUAttentionBackend.supports_block_size(CPU_STOCK_BLOCK_SIZE)


def test_a_config_that_is_checked_again_keeps_the_block_size(llama) -> None:
    config = ours(llama).create_engine_config()
    current_platform.check_and_update_config(config)
    assert config.cache_config.block_size == 32
