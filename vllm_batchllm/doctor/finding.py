# SPDX-License-Identifier: Apache-2.0
"""What the doctor says: one finding a line, and none of its checks may end in a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from vllm_batchllm.errors import UsageError

Level = Literal["ok", "note", "problem"]
_MAX_REASON = 300
_LEVEL_WIDTH, _TOPIC_WIDTH = 9, 18


class Finding(NamedTuple):
    """level: ``problem`` keeps the plugin from working, or a check from saying so. way_out: what to do, or empty."""

    level: Level
    topic: str
    text: str
    way_out: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<{_LEVEL_WIDTH}}{self.topic:<{_TOPIC_WIDTH}}{self.text}"
        indent = " " * (_LEVEL_WIDTH + _TOPIC_WIDTH)
        return f"{line}\n{indent}-> {self.way_out}" if self.way_out else line


def guarded(
    topic: str,
    check: Callable[[], Iterable[Finding]],
    failed: Level = "note",
    way_out: str = "",
) -> Iterator[Finding]:
    """The findings of ``check``; one that says what could not be found out, at level ``failed``, where it breaks.

    vLLM and drivers raise whatever they like, and some end the process instead.
    """
    try:
        yield from check()
    except UsageError as error:  # it says by itself what is wrong, and the way out
        yield Finding(failed, topic, str(error), way_out)
    except (Exception, SystemExit) as error:  # noqa: BLE001
        yield Finding(failed, topic, f"could not be found out: {reason_of(error)}", way_out)


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    name = type(error).__name__
    if not words:
        return name
    return f"{name}: {words[:_MAX_REASON]}{'…' if len(words) > _MAX_REASON else ''}"


def is_well(findings: Iterable[Finding]) -> bool:
    """Whether there is no problem."""
    return all(finding.level != "problem" for finding in findings)


def to_json(findings: Sequence[Finding]) -> str:
    """``{"well": …, "findings": [{"level", "topic", "text", "way_out"}, …]}``."""
    found = [finding._asdict() for finding in findings]
    return json.dumps({"well": is_well(findings), "findings": found}, indent=1)
