# SPDX-License-Identifier: Apache-2.0
"""Our scheduler, in an engine that some requests kill, or hang for ever: told by their seed."""

from __future__ import annotations

import time
from typing import Any

import vllm_batchllm

KILLS, HANGS = 666, 777


def create_scheduler(*args: Any, **kwargs: Any) -> Any:
    """As ours; a step in which such a request runs is the last one."""
    scheduler = vllm_batchllm.create_scheduler(*args, **kwargs)
    schedule = scheduler.schedule

    def deadly(*arguments: Any, **options: Any) -> Any:
        output = schedule(*arguments, **options)
        seeds = {request.sampling_params.seed for request in scheduler.running}
        if KILLS in seeds:
            raise RuntimeError("killed by a request")
        if HANGS in seeds:
            time.sleep(3600)
        return output

    scheduler.schedule = deadly
    return scheduler


create_scheduler.serves_prefix_groups = True  # type: ignore[attr-defined]
