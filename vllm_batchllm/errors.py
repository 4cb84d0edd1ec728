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


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error for `name`, with every known name and the closest one."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.0)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {kind} {clip(name)}.{hint} Known: {', '.join(names)}")
