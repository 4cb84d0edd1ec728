# SPDX-License-Identifier: Apache-2.0
"""Compare two live vLLM configurations: an A/B is void if more than the scheduler differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: The scheduler itself: what the arms are meant to differ in.
SCHEDULER_FIELDS = ("scheduler_config.scheduler_cls", "additional_config.batchllm")
#: What `performance_mode=throughput` and a watermark change, and what vLLM derives from that.
TUNED_FIELDS = (
    "scheduler_config.max_num_seqs",
    "scheduler_config.max_num_batched_tokens",
    "scheduler_config.max_num_scheduled_tokens",
    "scheduler_config.max_num_encoder_input_tokens",
    "scheduler_config.encoder_cache_size",
    "scheduler_config.watermark",
    "scheduler_config.max_num_partial_prefills",
    "compilation_config.compile_ranges_endpoints",
    "compilation_config.compile_ranges_split_points",
    "compilation_config.cudagraph_capture_sizes",
    "compilation_config.max_cudagraph_capture_size",
)
#: Identity and state of one engine, drawn or filled in anew for each.
IDENTITY_FIELDS = (
    "instance_id",
    "compilation_config.static_forward_context",
    "compilation_config.enabled_custom_ops",
    "compilation_config.disabled_custom_ops",
    "compilation_config.compilation_time",
    "compilation_config.encoder_compilation_time",
    "compilation_config.traced_files",
    # Derived from a hash that covers additional_config.
    "compilation_config.cache_dir",
    "compilation_config.local_cache_dir",
    # Free ports and names, found anew by each engine.
    "parallel_config.master_port",
    "parallel_config.data_parallel_master_port",
    "parallel_config.data_parallel_rpc_port",
    "parallel_config._data_parallel_master_port_list",
    "parallel_config._coord_store_port",
    "kv_transfer_config.engine_id",
)
_PLAIN = (str, int, float, bool, bytes, type(None))


def config_differences(first: Any, second: Any, allowed: Sequence[str] = ()) -> list[str]:
    """Dotted paths and values in which two configurations differ, scheduler fields left out.

    allowed: further paths in which they may.

    Fields whose values are neither plain, nor containers, nor dataclasses are compared by
    their type, since objects such as locks and layers are never equal.
    """
    one, two = dict(_flatten(first)), dict(_flatten(second))
    missing = "(absent)"
    return [
        f"{path}: {one.get(path, missing)!r} and {two.get(path, missing)!r}"
        for path in sorted(one.keys() | two.keys())
        if one.get(path, missing) != two.get(path, missing)
        and not any(path == name or path.startswith(f"{name}.") for name in allowed)
    ]


def _ignored(path: str) -> bool:
    return any(
        path == name or path.startswith(f"{name}.") for name in SCHEDULER_FIELDS + IDENTITY_FIELDS
    )


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if _ignored(path):
        return
    if isinstance(value, _PLAIN):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from _flatten(getattr(value, item.name, None), _join(path, item.name))
    elif isinstance(value, Mapping):
        for key, item_value in value.items():
            yield from _flatten(item_value, _join(path, str(key)))
    elif isinstance(value, list | tuple):
        yield _join(path, "len"), len(value)
        for index, item_value in enumerate(value):
            yield from _flatten(item_value, _join(path, str(index)))
    elif isinstance(value, set | frozenset):
        yield path, sorted(map(str, value))
    else:
        yield path, _describe(value)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _describe(value: Any) -> str:
    """A text that is equal for equal settings: repr where it tells no address, else the type."""
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
