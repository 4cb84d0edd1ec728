# SPDX-License-Identifier: Apache-2.0
"""`--engine-option KEY=VALUE`: any option of vLLM's engine, the same for all arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vllm_batchllm.bench.engine import STOCK, EngineSpec, arm_kwargs
from vllm_batchllm.bench.engine_option_names import engine_option_names
from vllm_batchllm.errors import UsageError, unknown_name
from vllm_batchllm.measure.command_line import read_pairs
from vllm_batchllm.messages import clip

_OURS = {
    "model": "give --model",
    "block_size": "give --block-size",
    "num_gpu_blocks_override": "give --kv-blocks",
    "dtype": "give --dtype",
    "max_num_batched_tokens": "give --max-num-batched-tokens",
    "max_num_seqs": "give --max-num-seqs",
    "seed": "give --seed",
    "scheduler_cls": "the arms differ in it; choose them with --arm",
    "watermark": "the arms differ in it; choose them with --arm",
    "performance_mode": "the arms differ in it; choose them with --arm",
    "enable_prefix_caching": "without it there is nothing to compare",
}


def read_engine_options(pairs: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Options as vLLM's Python names; vLLM is not imported for them.

    Raises:
        UsageError: no KEY=VALUE, given twice, set by the benchmark itself, or a name that this vLLM does not have.
    """
    options: dict[str, Any] = {}
    read_pairs([_named(pair) for pair in pairs], options)
    for name in options:
        if name in _OURS:
            raise UsageError(f"--engine-option {clip(name)}: {_OURS[name]}")
    if options:
        _check_names(list(options), engine_option_names())
    return tuple(options.items())


def _named(pair: str) -> str:
    """`--kv-cache-dtype=fp8` and `kv_cache_dtype=fp8` are the same."""
    key, separator, value = pair.partition("=")
    return key.removeprefix("--").replace("-", "_") + separator + value


def _check_names(names: Sequence[str], known: Sequence[str] | None) -> None:
    """Raises UsageError for one that is not among those known, if any are."""
    for name in names:
        if known is not None and name not in known:
            listed = "`vllm serve --help=all` lists them"
            raise unknown_name("engine option", name, known, listed)


def check_engine_options(spec: EngineSpec, *, on_cpu: bool) -> None:
    """Let vLLM look at the options of `spec`, before the first engine is started.

    Raises:
        UsageError: an unknown name, or vLLM refuses a value.
    """
    if not spec.extra:
        return
    from vllm.engine.arg_utils import EngineArgs

    _check_names([name for name, _ in spec.extra], [field.name for field in fields(EngineArgs)])
    kwargs = arm_kwargs(spec, STOCK, on_cpu=on_cpu)
    try:
        EngineArgs(**kwargs).create_engine_config()
    except Exception as error:  # vLLM and pydantic raise whatever they like here
        given = " ".join(f"{name}={value}" for name, value in spec.extra)
        raise UsageError(f"vLLM refuses --engine-option {clip(given)}: {error}") from error
