# SPDX-License-Identifier: Apache-2.0
"""How many engines a call of ``LLM`` asks for, and what each of them is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_batchllm.compat.names import is_ours
from vllm_batchllm.config import SECTION, BatchLLMConfig
from vllm_batchllm.replicas.start import ReplicaOptions

_OF_ONE_RANK = (
    "data_parallel_rank",
    "data_parallel_size_local",
    "data_parallel_start_rank",
    "data_parallel_address",
    "data_parallel_rpc_port",
    "data_parallel_backend",
    "data_parallel_external_lb",
    "data_parallel_hybrid_lb",
)


def num_replicas_of(batchllm: Any, kwargs: Mapping[str, Any], *, is_tpu: bool) -> int:
    """Engines that are asked for; 1 where ``data_parallel_size`` is vLLM's own affair.

    Raises:
        ValueError: two numbers that differ, or options that mean something else with several engines.
    """
    section = (kwargs.get("additional_config") or {}).get(SECTION) if batchllm is None else batchllm
    wanted = BatchLLMConfig.parse(section).replicas
    ranks = int(kwargs.get("data_parallel_size") or 1)
    if kwargs.get("distributed_executor_backend") == "external_launcher":
        return 1
    if is_tpu:
        return wanted
    if ranks > 1 and wanted > 1 and ranks != wanted:
        raise ValueError(
            f"data_parallel_size={ranks} and batchllm replicas = {wanted} ask for different numbers of engines; "
            "leave one out"
        )
    number = max(ranks, wanted)
    if number > 1:
        _check(number, kwargs)
    return number


def _check(number: int, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("enable_expert_parallel"):
        raise ValueError(
            f"enable_expert_parallel with {number} engines means one engine whose experts are spread over data-parallel "
            "ranks, which are no replicas; leave enable_expert_parallel out, or use `vllm serve`"
        )
    given = [name for name in _OF_ONE_RANK if kwargs.get(name) is not None]
    if given:
        raise ValueError(
            f"{given[0]}={kwargs[given[0]]!r} belongs to one data-parallel rank, and LLM with {number} engines starts all "
            "of them itself; leave it out"
        )
    scheduler = kwargs.get("scheduler_cls")
    if scheduler is not None and not is_ours(scheduler):
        raise ValueError(
            f"vllm_batchllm.LLM runs its own scheduler, got scheduler_cls={scheduler!r}; leave it out"
        )


def for_one_engine(
    batchllm: Any, kwargs: Mapping[str, Any], number: int
) -> tuple[BatchLLMConfig, dict[str, Any], ReplicaOptions]:
    """Our options, the arguments of each engine, and what its replica takes."""
    own = dict(kwargs)
    additional = dict(own.pop("additional_config", None) or {})
    section = additional.pop(SECTION, None)
    if batchllm is not None and section is not None:
        raise ValueError(
            f"batchllm options were given twice: LLM(batchllm=...) and additional_config[{SECTION!r}]; leave one out"
        )
    config = BatchLLMConfig.parse(section if batchllm is None else batchllm)
    own.pop("data_parallel_size", None)
    own |= {"batchllm": replace(config, replicas=1), "additional_config": additional}
    sizes = (kwargs.get(f"{kind}_parallel_size") or 1 for kind in ("tensor", "pipeline"))
    tensor, pipeline = map(int, sizes)
    return config, own, ReplicaOptions(number, tensor * pipeline)
