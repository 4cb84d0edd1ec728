# SPDX-License-Identifier: Apache-2.0
"""What differs between the supported versions of vLLM, told by what is there: one function each.

Nothing asks for a version. Where a function is no longer needed, the ledger's entry with ``below``
says so, and a test fails when the supported range has passed it.
"""

from __future__ import annotations

from typing import Any


def end_with_error(scheduler: Any, request_id: str, message: str) -> None:
    """Have vLLM end a request with an error in its next update, and go on with the others.

    vLLM 0.32 keeps a set of such requests, and its client learns that there was an error. 0.33
    keeps a map to errors, and its client learns ``message`` as the reason why the request is
    invalid.
    """
    failed = scheduler.grammar_compile_error_reqs
    if isinstance(failed, set):
        failed.add(request_id)
        return
    from vllm.outputs import RequestError

    failed[request_id] = RequestError(code="validation_error", message=message)


def planned_block_size(vllm_config: Any, cpu_default: int) -> int:
    """Tokens of a KV block in the engine of a finished config, if nobody changes the config.

    In vLLM 0.32 the config says it. In 0.33 it holds the default of all devices where the user
    set nothing, and the CPU's executor puts ``cpu_default`` in as it starts. Where 0.32 has that
    value on a CPU (MLA), it means a kernel that takes no other, and nothing may be fitted.
    """
    from vllm.config import CacheConfig
    from vllm.platforms import current_platform

    cache = vllm_config.cache_config
    is_open = cache.block_size == CacheConfig.DEFAULT_BLOCK_SIZE
    if is_open and not cache.user_specified_block_size and current_platform.is_cpu():
        return cpu_default
    return int(cache.block_size)
