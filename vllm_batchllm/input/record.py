# SPDX-License-Identifier: Apache-2.0
"""The JSON value of a line as an object, whoever reads it: what may stand there instead of one."""

from __future__ import annotations

from typing import Any

ONE_OBJECT_A_LINE = (
    "; if the file is one JSON array, write one object a line: jq -c '.[]' FILE > FILE.jsonl"
)
TOKEN_IDS = "prompt_token_ids"


class BadLineError(ValueError):
    """A line that is no request; its text is the reason."""


def as_record(value: Any) -> dict[str, Any]:
    """The object that a line stands for.

    A text is a prompt. ``{"prompt_token_ids": [...]}`` is a prompt of token ids.

    Raises:
        BadLineError: it is neither an object nor a text, or says its prompt twice.
    """
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        hint = ONE_OBJECT_A_LINE if isinstance(value, list) else ""
        raise BadLineError(f"not a JSON object but {kind_of(value)}{hint}")
    if TOKEN_IDS not in value or "body" in value:
        return value
    for name in ("prompt", "messages"):
        if value.get(name) is not None:
            raise BadLineError(f'has both "{TOKEN_IDS}" and "{name}"; only one can be meant')
    ids = value[TOKEN_IDS]
    if not isinstance(ids, list):
        raise BadLineError(f'"{TOKEN_IDS}" must be a list of token ids, not {kind_of(ids)}')
    return {"prompt": ids} | {
        name: each for name, each in value.items() if name not in ("prompt", "messages", TOKEN_IDS)
    }


def kind_of(value: Any) -> str:
    """Name the JSON type of a value."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
