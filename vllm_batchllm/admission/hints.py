# SPDX-License-Identifier: Apache-2.0
"""What users say of the output they expect of a request."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from vllm_batchllm.messages import clip

HINT = "expected_output_tokens"
"""Key of the hint inside ``SamplingParams.extra_args``."""

MAX_HINT = 2**31 - 1
"""Largest hint, tokens: what vLLM's own counts of tokens hold."""


def hint_from(extra_args: Mapping[str, Any] | None) -> int | None:
    """The output length that the user expects of a request, tokens; None if not given.

    Raises:
        ValueError: the hint is no whole number from 1 to ``MAX_HINT``; names the hint and the
            value, cut short if it is long.
    """
    if not extra_args or HINT not in extra_args:
        return None
    return checked_hint(extra_args[HINT])


def checked_hint(value: object) -> int:
    """``value`` if it is a whole number in range. Raises ValueError as hint_from does."""
    is_number = isinstance(value, Integral) and not isinstance(value, bool)  # numpy's, too
    if not is_number or not 1 <= int(value) <= MAX_HINT:  # type: ignore[call-overload]
        raise ValueError(
            f"hint {HINT!r} = {clip(value)} is not allowed; allowed: a whole number >= 1 "
            f"(tokens of output, at most {MAX_HINT}), or no hint"
        )
    return int(value)  # type: ignore[call-overload,no-any-return]
