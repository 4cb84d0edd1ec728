# SPDX-License-Identifier: Apache-2.0
"""One colour per arm, the same in every picture; they stay apart for the colour-blind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_KNOWN: Final = {"stock": "#8a8f98", "sorted": "#3b7dd8", "batchllm": "#e07b00"}
_FURTHER: Final = ("#12908a", "#b45aa5", "#b8960c", "#59b4e4", "#a8442f", "#4d5fb0", "#7a8b2a")
#: Colours of levels below each other, none an arm's; dark text is readable on all of them.
LEVELS: Final = ("#bcd6f5", "#8fbaec", "#a9d5b4", "#d9b8dd", "#d8d3a0", "#9fd3d6")
#: Parts of a whole beside each other, where no arm is meant.
PARTS: Final = ("#5b8db8", "#9fb8d0", "#d98c5f", "#e8c07d", "#7d6b91", "#8fa876", "#b5b9bf")
#: What is best possible, held against the arms.
BEST: Final = "#2a9d6f"


def arm_colours(arms: Iterable[str]) -> dict[str, str]:
    """A colour for each arm, by name for the three of `bench`, else by order of appearance.

    More arms than there are colours begin again with the first further one.
    """
    colours: dict[str, str] = {}
    num_further = 0
    for arm in arms:
        if arm in colours:
            continue
        if arm in _KNOWN:
            colours[arm] = _KNOWN[arm]
        else:
            colours[arm] = _FURTHER[num_further % len(_FURTHER)]
            num_further += 1
    return colours
