# SPDX-License-Identifier: Apache-2.0
"""vllm-batchllm: vLLM for large batches whose prompts share prefixes.

``from vllm_batchllm import LLM`` is a drop-in for ``vllm.LLM``. Names are loaded on first use,
so that planning and options work where vLLM is not installed. The names below stay, whatever moves
behind them: ``--scheduler batchllm`` and ``--scheduler-cls vllm_batchllm.create_scheduler`` use them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

    from vllm_batchllm.config import BatchLLMConfig
    from vllm_batchllm.llm import LLM
    from vllm_batchllm.offline.report import BatchReport
    from vllm_batchllm.scheduler.scheduler import (
        AsyncBatchLLMScheduler,
        BatchLLMScheduler,
        create_scheduler,
    )

    __version__: str

__all__ = [
    "LLM",
    "SamplingParams",
    "BatchLLMConfig",
    "BatchReport",
    "BatchLLMScheduler",
    "AsyncBatchLLMScheduler",
    "create_scheduler",
    "__version__",
]

_NEED_VLLM = {
    "LLM",
    "SamplingParams",
    "BatchLLMScheduler",
    "AsyncBatchLLMScheduler",
    "create_scheduler",
}
_HOME = {
    "LLM": "vllm_batchllm.llm",
    "BatchLLMConfig": "vllm_batchllm.config",
    "BatchReport": "vllm_batchllm.offline.report",
    "BatchLLMScheduler": "vllm_batchllm.scheduler.scheduler",
    "AsyncBatchLLMScheduler": "vllm_batchllm.scheduler.scheduler",
    "create_scheduler": "vllm_batchllm.scheduler.scheduler",
    "SamplingParams": "vllm",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # asking the metadata takes longer than everything else here
        return importlib.import_module("importlib.metadata").version("vllm-batchllm")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _NEED_VLLM:  # another vLLM may fail on any import below: the refusal comes first
        importlib.import_module("vllm_batchllm.compat.version").check_vllm_version()
    return getattr(importlib.import_module(_HOME[name]), name)
