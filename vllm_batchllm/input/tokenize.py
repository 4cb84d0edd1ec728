# SPDX-License-Identifier: Apache-2.0
"""Requests to token ids, the same ones that vLLM will see.

A text gets the tokenizer's special tokens, as in `LLM.generate`. A conversation is rendered
with the model's chat template and then tokenised without them, as in `LLM.chat`, since the
template writes them itself. Token ids stay as they are; they are not held against the
vocabulary. Chat templates are given each message as one text, vLLM's "string" format.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_batchllm.compat.version import installed_vllm_version
from vllm_batchllm.input.reader import BadLine
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.rendering import Rendering
from vllm_batchllm.input.request import Conversation, PlanRequest
from vllm_batchllm.input.tokenizer import TokenizerError
from vllm_batchllm.prefix.best_saving import TOKEN_TYPECODE

_BATCH_SIZE = 512


@dataclass(frozen=True, slots=True)
class TokenizedRequest:
    """One request as token ids, in an array of 32-bit integers; equal prompts may share it.

    readable: prompt tokens that it may read from a cache at most, None for all of them.
    """

    tokens: array[int]
    namespace: bytes
    max_tokens: int | None
    readable: int | None = None


@dataclass(frozen=True, slots=True)
class TokenizeResult:
    """The requests in their order, and those that cannot be rendered or have no tokens."""

    requests: list[TokenizedRequest]
    bad_lines: list[BadLine]


def tokenize_requests(
    requests: Sequence[PlanRequest],
    tokenizer: Any,
    on_progress: Callable[[int], object] = lambda num_requests: None,
) -> TokenizeResult:
    """Tokenise all requests, equal texts once.

    Args:
        requests: as read from the file.
        tokenizer: a transformers tokenizer.
        on_progress: called with the number of requests done since its last call.

    Raises:
        TokenizerError: there are conversations, but the tokenizer has no chat template.
    """
    result = TokenizeResult([], [])
    requests = _readable(requests, result.bad_lines)
    if any(isinstance(request.content, Conversation) for request in requests):
        _check_chat_template(tokenizer)
    known: dict[tuple[str, bool], array[int]] = {}
    for start in range(0, len(requests), _BATCH_SIZE):
        batch = requests[start : start + _BATCH_SIZE]
        contents = [_rendered(request, tokenizer, result.bad_lines) for request in batch]
        _tokenize_texts(contents, tokenizer, known)
        for request, content in zip(batch, contents, strict=True):
            tokens = known[content] if isinstance(content, tuple) else content
            if tokens and request.rendering.keep is not None:
                tokens = _cut(tokens, request.rendering, tokenizer)
            if tokens:
                result.requests.append(
                    TokenizedRequest(
                        tokens, request.namespace, request.max_tokens, request.readable
                    )
                )
            elif tokens is not None:
                result.bad_lines.append(BadLine(request.line, "the prompt has no tokens"))
        on_progress(len(batch))
    return result


def _readable(requests: Sequence[PlanRequest], bad_lines: list[BadLine]) -> Sequence[PlanRequest]:
    """Those that can be read here: without vLLM prompts and token ids, but no chats or bodies."""
    if installed_vllm_version() is not None:
        return requests
    for request in requests:
        if _needs_vllm(request):
            what = "an OpenAI body" if request.is_openai else "a chat"
            bad_lines.append(
                BadLine(
                    request.line,
                    f"{what} is read as vLLM reads it, and vLLM is not installed; without it "
                    "prompts and token ids can be planned",
                )
            )
    return [request for request in requests if not _needs_vllm(request)]


def _needs_vllm(request: PlanRequest) -> bool:
    return request.is_openai or isinstance(request.content, Conversation)


def _check_chat_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, but lines have "
            '"messages"; name the instruction-tuned model, or write prompts instead'
        )


def _rendered(
    request: PlanRequest, tokenizer: Any, bad_lines: list[BadLine]
) -> tuple[str, bool] | array[int] | None:
    """Return (text, whether it gets special tokens), token ids, or None for a bad line."""
    special = request.rendering.special_tokens
    if isinstance(request.content, str):
        return request.content, special is not False
    if isinstance(request.content, array):
        return request.content
    try:
        return _render_chat(request.content, request.rendering, tokenizer), bool(special)
    except BadLineError as error:
        bad_lines.append(BadLine(request.line, str(error)))
        return None


def _cut(tokens: array[int], rendering: Rendering, tokenizer: Any) -> array[int]:
    """At most ``rendering.keep`` of the tokens, cut off at its side."""
    assert rendering.keep is not None
    side = rendering.side or getattr(tokenizer, "truncation_side", "right")
    if side == "left":
        return tokens[max(len(tokens) - rendering.keep, 0) :]
    return tokens[: rendering.keep]


def _render_chat(conversation: Conversation, rendering: Rendering, tokenizer: Any) -> str:
    options: dict[str, Any] = {
        "add_generation_prompt": True,
        **rendering.template_options,
        **conversation.template_options,
        "tools": conversation.tools,
        "tokenize": False,
    }
    try:
        text = str(tokenizer.apply_chat_template(conversation.messages, **options))
        text.encode()
    except Exception as error:  # templates are programs; vLLM refuses such a request, too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadLineError(f"the chat template refuses it: {reason}") from error
    return text


def _tokenize_texts(
    contents: Sequence[tuple[str, bool] | array[int] | None],
    tokenizer: Any,
    known: dict[tuple[str, bool], array[int]],
) -> None:
    """Add the token ids of all texts that are not known yet."""
    for special in (True, False):
        texts = list(_new_texts(contents, special, known))
        if not texts:
            continue
        encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False)
        for text, ids in zip(texts, encoded["input_ids"], strict=True):
            known[text, special] = array(TOKEN_TYPECODE, ids)


def _new_texts(
    contents: Sequence[tuple[str, bool] | array[int] | None],
    special: bool,
    known: dict[tuple[str, bool], array[int]],
) -> Iterator[str]:
    new = dict.fromkeys(content for content in contents if isinstance(content, tuple))
    return (text for text, flag in new if flag == special and (text, flag) not in known)
