# SPDX-License-Identifier: Apache-2.0
"""Places at which a test may let a job fail, by name. Nothing happens at them unless the environment says so.

``VLLM_BATCHLLM_FAILPOINTS="journal.written=kill:3,journal.write=full:1"``: at the third passage of one the process kills itself,
at the first of the other the disk is full.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

VARIABLE = "VLLM_BATCHLLM_FAILPOINTS"


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _denied() -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


_ACTIONS: dict[str, Callable[[], None]] = {"kill": _kill, "full": _full, "denied": _denied}


class Failpoints:
    """What happens at which passage of which place."""

    def __init__(self, setting: str) -> None:
        self._planned: dict[str, tuple[Callable[[], None], int]] = {}
        self._passed: dict[str, int] = {}
        for one in filter(None, setting.split(",")):
            name, _, what = one.partition("=")
            action, _, passage = what.partition(":")
            self._planned[name] = (_ACTIONS[action], int(passage or 1))

    def hit(self, name: str) -> None:
        """Somebody passes ``name``."""
        planned = self._planned.get(name)
        if planned is None:
            return
        self._passed[name] = self._passed.get(name, 0) + 1
        if self._passed[name] == planned[1]:
            planned[0]()


hit: Callable[[str], None] = Failpoints(os.environ.get(VARIABLE, "")).hit
"""The failpoints of this process."""
