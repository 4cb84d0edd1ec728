# SPDX-License-Identifier: Apache-2.0
"""Processes of an engine that belong to a job: they end with it, and the terminal's Ctrl-C is not for them.

A job that is killed cannot end its engine, which would keep its device for ever. So every process that vLLM starts for it looks
after it: from the import of our command on, where it is spawned from that; else as soon as vLLM has loaded the plugins there.
"""

from __future__ import annotations

import os
import threading
import time

VARIABLE = "VLLM_BATCHLLM_JOB_PID"
"""Holds the job's process id in its own environment, which its children inherit."""

_LOOK_EVERY_S = 0.5
_watches_forks = False


def begin_job() -> None:
    """This process is a job: whatever it starts from now on belongs to it."""
    global _watches_forks
    os.environ[VARIABLE] = str(os.getpid())
    if not _watches_forks:
        _watches_forks = True
        os.register_at_fork(after_in_child=belong_to_job)


def belong_to_job() -> None:
    """If this process was started for a job, leave its process group and end when it or the parent ends (idempotent)."""
    job = os.environ.get(VARIABLE, "")
    if not job.isdecimal() or int(job) == os.getpid():
        return
    if any(thread.name == VARIABLE for thread in threading.enumerate()):
        return
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    watch = threading.Thread(target=_end_with, args=(int(job), os.getppid()), name=VARIABLE)
    watch.daemon = True
    watch.start()


def _end_with(job: int, parent: int) -> None:
    while os.getppid() == parent and _is_alive(job):
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
