# SPDX-License-Identifier: Apache-2.0
"""The fields of a body that change its tokens, read by vLLM's own request classes.

Most bodies have none of them, and are read without vLLM. Those that have are alike in them, so each combination is
read once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

CHAT_FIELDS = (
    "add_generation_prompt",
    "continue_final_message",
    "documents",
    "reasoning_effort",
)
TOKEN_FIELDS = ("add_special_tokens", "truncate_prompt_tokens", "truncation_side")
CANNOT = {
    "chat_template": "a template of the request's own, which a server refuses unless it trusts requests",
    "prompt_embeds": "embeddings, which have no tokens",
    "suffix": "a suffix, which vLLM refuses",
}
"""Fields that cannot be honoured, and why."""


class UnreadableFieldError(ValueError):
    """A field is refused by vLLM, or cannot be honoured here; its text says which and why."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a request becomes tokens, where it says so itself.

    template_options: for the chat template. special_tokens: whether the tokenizer adds its own; None for the
    default of a chat or a prompt. keep: tokens that stay at most; None for all. side: where others are cut
    off; None leaves it to the tokenizer.
    """

    template_options: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: bool | None = None
    keep: int | None = None
    side: Literal["left", "right"] | None = None


PLAIN = Rendering()


def rendering_of(body: Mapping[str, Any]) -> Rendering:
    """What ``body`` says of its rendering; ``PLAIN`` if it says nothing.

    Raises:
        UnreadableFieldError: vLLM is needed and not installed, refuses a field, or the field
            cannot be honoured.
    """
    for name, why in CANNOT.items():
        if body.get(name) is not None:
            raise UnreadableFieldError(f'"{name}" cannot be honoured: {why}')
    given = {name: body[name] for name in (*CHAT_FIELDS, *TOKEN_FIELDS) if name in body}
    if not given:
        return PLAIN
    try:
        return _read("messages" in body, json.dumps(given, sort_keys=True))
    except ImportError:
        names = ", ".join(f'"{name}"' for name in given)
        raise UnreadableFieldError(
            f"{names}: read as vLLM reads it, and vLLM is not installed; leave it out"
        ) from None


@lru_cache(maxsize=1024)
def _read(is_chat: bool, text: str) -> Rendering:
    """The rendering that the fields in ``text``, JSON, ask for."""
    from pydantic import ValidationError

    try:
        return _chat(json.loads(text)) if is_chat else _prompt(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise UnreadableFieldError(f'"{where}": vLLM refuses it: {first["msg"]}') from None
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - vLLM's own, of whatever class
        raise UnreadableFieldError(f"vLLM refuses it: {error}") from None


def _chat(fields: dict[str, Any]) -> Rendering:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    messages = [{"role": "user", "content": "x"}]
    request = ChatCompletionRequest.model_validate({"model": "m", "messages": messages, **fields})
    options = dict(request.build_chat_params(None, "string").chat_template_kwargs)
    return _cut(request, Rendering(options, request.add_special_tokens))


def _prompt(fields: dict[str, Any]) -> Rendering:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    request = CompletionRequest.model_validate({"model": "m", "prompt": "x", **fields})
    return _cut(request, Rendering(special_tokens=request.add_special_tokens))


def _cut(request: Any, rendering: Rendering) -> Rendering:
    keep = request.truncate_prompt_tokens
    if keep is None:
        return rendering
    if keep < 0:
        raise UnreadableFieldError(
            '"truncate_prompt_tokens" of -1 is the longest context of the model as it is served, '
            "which is not known here; give the number"
        )
    side = request.truncation_side
    return Rendering(rendering.template_options, rendering.special_tokens, keep, side)
