# SPDX-License-Identifier: Apache-2.0
"""Where a scheduler decides: given to it when it is built, so that a simulation builds one for a
device that is not at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]
"""Seconds, never going back."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What decisions take from the outside.

    platform: "cpu" or "cuda", by which steps may be made smaller. clock: tells, with ``max_wait_s``,
    how long requests wait; nothing else reads it.
    """

    platform: str
    clock: Clock = time.monotonic
