# SPDX-License-Identifier: Apache-2.0
"""What makes a job the same job when it is started again: everything of its command that may change an answer."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from vllm_batchllm.input.line import LineDefaults

_NEVER_CHANGE_ANSWERS = frozenset(
    [
        "additional_config",
        "aggregate_engine_logging",
        "api_server_count",
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "disable_cascade_attn",
        "disable_log_requests",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_log_deltas",
        "enable_log_outputs",
        "enable_log_requests",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "kv_offloading_backend",
        "kv_offloading_size",
        "log_error_stack",
        "max_cudagraph_capture_size",
        "max_log_len",
        "max_long_partial_prefills",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "max_num_queued_reqs",
        "max_num_queued_tokens",
        "max_num_scheduled_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "model",
        "num_gpu_blocks_override",
        "optimization_level",
        "long_prefill_token_threshold",
        "performance_mode",
        "prefix_caching_hash_algo",
        "scheduler_cls",
        "scheduling_policy",
        "shutdown_timeout",
        "stream_interval",
        "swap_space",
        "watermark",
    ]
)
"""Options of vLLM that decide how fast and where an answer is computed. Those of parallelism come by their beginnings."""

_PARALLEL = ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel", "ray_")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def identity_of(args: Namespace, parser: ArgumentParser, defaults: LineDefaults) -> dict[str, str]:
    """Names and values that have to be equal for answers to be."""
    identity = {"model": str(args.model)}
    folder = Path(str(args.model))
    if folder.is_dir():
        identity["model files"] = _files_of(folder)
    for name, value in sorted(vars(args).items()):
        may_change = name not in _NEVER_CHANGE_ANSWERS and not name.startswith(_PARALLEL)
        if may_change and value != parser.get_default(name):
            identity[f"--{name.replace('_', '-')}"] = str(value)
    if defaults.max_tokens is not None:
        identity["--max-tokens"] = str(defaults.max_tokens)
    return identity


def _files_of(folder: Path) -> str:
    """A digest of a model's folder: its configuration, names and sizes of its weights."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix in _WEIGHTS:
            digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()


def without(args: Namespace, names: list[str]) -> Namespace:
    """``args`` less those of the job, which vLLM does not know."""
    kept: dict[str, Any] = {key: value for key, value in vars(args).items() if key not in names}
    return Namespace(**kept)
