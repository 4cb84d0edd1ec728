# SPDX-License-Identifier: Apache-2.0
"""Finding a model's tokenizer, and saying what is wrong where there is none."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


class TokenizerError(Exception):
    """No tokenizer can be had from what was named as the model; the text says the way out."""


def load_tokenizer(model: str) -> Any:
    """Return the transformers tokenizer of a local model folder or of a model on the hub.

    Raises:
        TokenizerError: the folder is missing or half converted, the hub cannot be reached, or
            transformers is not installed.
    """
    path = check_folder(model)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise TokenizerError(
            f"planning needs the package transformers, which comes with vLLM: {error}"
        ) from error
    # It warns of prompts longer than the model allows, once for each process, on stderr.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers and tokenizers raise whatever they like here
        raise TokenizerError(_load_failure(model, error)) from error


def decode_leniently(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of token ids, or the ids themselves where the vocabulary lacks one."""
    try:
        text = str(tokenizer.decode(tokens))
    except (LookupError, OverflowError, TypeError, ValueError):
        text = ""
    return text or " ".join(map(str, tokens))


def _expanded(model: str) -> str:
    """Return `model` with a home folder in front put in, if there is one."""
    try:
        return os.path.expanduser(model)
    except ValueError:  # a name that no user can have
        return model


def check_folder(model: str) -> str:
    """Raise TokenizerError at once if no tokenizer can be had there; else the path, or the name on the hub."""
    path = check_place(model)
    if os.path.isdir(path) and not any(
        os.path.isfile(os.path.join(path, name)) for name in _TOKENIZER_FILES
    ):
        raise TokenizerError(
            f"the model folder {model} holds no tokenizer (none of "
            f"{', '.join(_TOKENIZER_FILES)}): its download or conversion did not finish; "
            "repeat it, or name the model it was made from"
        )
    return path


def check_place(model: str) -> str:
    """Raise TokenizerError if `model` can only be a path and no folder is there; else the path, or the name on the hub.

    With os.path, since Path raises for names which no file can have.
    """
    path = _expanded(model)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise TokenizerError(f"{model} is a file; name the folder of a model with its tokenizer")
    if _is_path(model):
        raise TokenizerError(
            f"the model folder {model} does not exist; name an existing folder or a model on "
            "the hub (owner/name)"
        )
    return path


def _is_path(model: str) -> bool:
    """Tell whether a name cannot be `owner/name` of the hub."""
    return model.startswith((".", "~", os.sep)) or "\\" in model or model.count("/") > 1


def _load_failure(model: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if os.path.isdir(_expanded(model)):
        return (
            f"the tokenizer in the model folder {model} cannot be read ({reason}): its download "
            "or conversion did not finish; repeat it"
        )
    return (
        f"{model} is no folder here, and no tokenizer of that name could be fetched from the "
        f"model hub ({reason}); check the spelling and the network, or name a local folder"
    )
