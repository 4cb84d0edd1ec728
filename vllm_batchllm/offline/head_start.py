# SPDX-License-Identifier: Apache-2.0
"""How much of a batch is queued before the engine begins with it.

The whole batch in sight is worth most, but rendering it may take longer than computing it, and a device that waits
is worth nothing. So the engine waits for a moment, in which fast rendering queues thousands of requests, and begins then
with what there is, the rest being queued meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class HeadStart:
    """Tells when the engine may begin, once.

    Args:
        begin: called then.
        patience_s: seconds after which it may; None waits for the whole batch.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        begin: Callable[[], None],
        patience_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._begin: Callable[[], None] | None = None if patience_s is None else begin
        self._clock = clock
        self._end_s = clock() + (patience_s or 0.0)

    def queued(self) -> None:
        """One more request waits now."""
        if self._begin is not None and self._clock() >= self._end_s:
            begin, self._begin = self._begin, None
            begin()
