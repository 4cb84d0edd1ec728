# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the user can mend this": shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vllm_batchllm.messages import clip

EXIT_INTERRUPTED = 130
"""Of a command that the user has interrupted, as shells have it; `run`, which can go on, has its own."""


class UsageError(ValueError):
    """A benchmark cannot run as asked; the message names the value and the way out."""


MOST_NAMES = 60
"""Known names of which an error lists all; of more it lists those that are close."""


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> UsageError:
    """An error for `name`, with every known name and the closest one.

    where: what lists them, for names that are too many for an error.
    """
    names = sorted(known)
    if len(names) > MOST_NAMES:
        close = difflib.get_close_matches(name[:100], names, n=5, cutoff=0.5)
        hint = f" Close: {', '.join(close)}." if close else ""
        return UsageError(f"unknown {kind} {clip(name)}.{hint} There are {len(names)}; {where}")
    close = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.0)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {kind} {clip(name)}.{hint} Known: {', '.join(names)}")
