# SPDX-License-Identifier: Apache-2.0
"""Ends the admissions of a step in which images no longer fit the encoder.

A step encodes so many images (or other inputs of an encoder) and no more. From 0.33 on vLLM skips whoever
does not fit and looks at the next, so with a batch of images it looks at everybody who waits, in every step.
"""

from __future__ import annotations

MOST_REFUSED = 16
"""In a row. Who shares an image with one that is encoded in this step stands right behind it, so a row of those who
do not fit is of other images; one whose image is encoded already may stand further behind, and waits for a step."""


class EncoderGate:
    """Whether anybody who waits may still start in this step, as far as the encoder goes. O(1) each.

    It is closed once so many in a row were refused, if nobody waits who has no need of the encoder, and if somebody
    runs, so that there is a next step in which images that are held make room.

    Args:
        most_refused: in a row, behind which nobody else is looked at in the step.
    """

    def __init__(self, most_refused: int = MOST_REFUSED) -> None:
        self.is_closed = False
        """Whether nobody else is to be looked at in this step."""
        self._most_refused = most_refused
        self._num_without = 0
        self._num_refused = 0
        self._may_close = False

    def counted(self, has_encoder_inputs: bool, change: int) -> None:
        """``change`` requests more wait, with such inputs or without. Whoever starts waits until the step ends."""
        if not has_encoder_inputs:
            self._num_without += change

    def begin_step(self, is_running: bool) -> None:
        """A step begins; ``is_running``: whether anybody runs in it already."""
        self.is_closed = False
        self._may_close = is_running
        self._num_refused = 0

    def answered(self, is_refused: bool) -> None:
        """Somebody with inputs for the encoder was looked at, and may start or not."""
        self._num_refused = self._num_refused + 1 if is_refused else 0
        are_many = self._num_refused >= self._most_refused
        self.is_closed = are_many and self._may_close and not self._num_without

    def end_step(self) -> bool:
        """Between steps it is open. Returns whether it was closed."""
        was_closed, self.is_closed = self.is_closed, False
        self._may_close = False
        return was_closed

    def check_integrity(self, num_without: int) -> None:
        """Raise AssertionError where other than ``num_without`` of those who wait are counted."""
        assert self._num_without == num_without, "who waits without images is counted wrongly"
