# SPDX-License-Identifier: Apache-2.0
"""What a scheduler is built with: the user's options, the device, and whether admission is ours."""

from __future__ import annotations

from collections.abc import Mapping

from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import KVCacheConfig

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.admission.options import AdmissionOptions, admission_options
from vllm_batchllm.config import SECTION, BatchLLMConfig
from vllm_batchllm.log import get_logger
from vllm_batchllm.scheduler.layer_kinds import unforeseen_kinds

logger = get_logger(__name__)


def admission_for(config: BatchLLMConfig, kv_cache: KVCacheConfig) -> AdmissionOptions | None:
    """The options of admission; None, as vLLM does, where it could not foresee the memory."""
    options = admission_options(config)
    unforeseen = unforeseen_kinds(kv_cache) if options is not None else []
    if not unforeseen:
        return options
    logger.info(
        "Admission: as vLLM's, not %r: this model has layers of %s, and how many blocks they will "
        "hold cannot be foreseen",
        config.admission_rule,
        ", ".join(unforeseen),
    )
    return None


def current_environment() -> Environment:
    """The device at hand, measured by its own clock."""
    return Environment("cpu" if current_platform.is_cpu() else "cuda")


def config_of(vllm_config: VllmConfig) -> BatchLLMConfig:
    """Our options inside ``vllm_config``, checked.

    Raises:
        ValueError: as ``parse`` does, and for an option that reads a clock where several schedulers
            serve one batch and must decide alike; or several engines are asked of one.
    """
    additional = vllm_config.additional_config
    section = additional.get(SECTION) if isinstance(additional, Mapping) else None
    config = BatchLLMConfig.parse(section)
    if config.replicas > 1:
        raise ValueError(
            f"batchllm option 'replicas' = {config.replicas} is for LLM alone, and this is one engine; leave it out. "
            "`vllm serve` has --data-parallel-size, `vllm-batchllm run` has --replicas"
        )
    backend = vllm_config.parallel_config.distributed_executor_backend
    for name in config.reads_clock if backend == "external_launcher" else []:
        value = getattr(config, name)
        raise ValueError(
            f"batchllm option {name!r} = {value if isinstance(value, str) else format(value, 'g')} reads a clock, and with "
            f"distributed_executor_backend = {backend!r} each rank has one of its own, so that they "
            "would decide differently; leave it out"
        )
    return config
