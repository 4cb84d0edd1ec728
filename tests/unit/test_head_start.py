# SPDX-License-Identifier: Apache-2.0
"""When the engine begins with a batch of which a part is queued."""

from __future__ import annotations

from vllm_batchllm.offline.head_start import HeadStart


class Timeline:
    """Prompts one after the other, at times of our choosing; keeps when the engine began."""

    def __init__(self, patience_s: float | None) -> None:
        self.now_s = 0.0
        self.began: list[float] = []
        self.start = HeadStart(self.begin, patience_s, lambda: self.now_s)

    def begin(self) -> None:
        self.began.append(self.now_s)

    def queue(self, num_prompts: int, seconds: float) -> list[float]:
        for _ in range(num_prompts):
            self.now_s += seconds
            self.start.queued()
        return self.began


def test_a_batch_that_is_queued_soon_is_queued_whole() -> None:
    assert Timeline(0.5).queue(10, 0.01) == []


def test_slow_rendering_does_not_keep_the_device_waiting() -> None:
    assert Timeline(0.5).queue(150, 0.25) == [0.5]
    assert Timeline(0.0).queue(150, 0.25) == [0.25]


def test_without_a_limit_the_whole_batch_comes_first() -> None:
    assert Timeline(None).queue(30, 30.0) == []
