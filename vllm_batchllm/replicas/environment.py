# SPDX-License-Identifier: Apache-2.0
"""Which variables of the driver's environment are set for a replica as well, and what a replica on a CPU needs beside others."""

from __future__ import annotations

import os
from collections.abc import Mapping

_PREFIXES = ("VLLM_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "NCCL_", "TORCH", "TRITON_")
_NAMES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH")
_NEVER = ("VLLM_HOST_IP", "VLLM_PORT", "VLLM_DP_", "VLLM_BATCHLLM_JOB_PID")
"""What belongs to one process or one machine."""


def replica_environment(num_threads: int | None) -> dict[str, str]:
    """Variables for the processes of one replica, all of which the user may have set.

    num_threads: of a replica on a CPU; None on GPUs.
    """
    taken = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_PREFIXES) or name in _NAMES) and not name.startswith(_NEVER)
    }
    return {**(on_cpu(num_threads) if num_threads is not None else {}), **taken}


def on_cpu(num_threads: int) -> Mapping[str, str]:
    """Each engine would bind its threads to the same cores as the others, and take all of them."""
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(num_threads)}
