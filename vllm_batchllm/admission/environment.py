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

    platform: "cpu" or "cuda", whose step costs hold until others have been measured. clock: measures
    the steps and, with ``max_wait_s``, how long requests wait; None keeps the platform's costs, so
    that without that option nothing depends on the time of day.
    """

    platform: str
    clock: Clock | None = time.perf_counter
