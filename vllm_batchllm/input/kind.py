# SPDX-License-Identifier: Apache-2.0
"""A file of another kind than lines of requests: told by its first bytes, refused with the way out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vllm_batchllm.errors import UsageError

_HEAD_BYTES = 2**16
_MAGIC = (
    (b"PAR1", "a Parquet file; let its name end in .parquet"),
    (b"\x1f\x8b", "packed by gzip; let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; let its name end in .zst"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"%PDF", "a PDF file"),
    (b"SQLite format 3", "a database"),
)
_OPENED = re.compile(r'\{[ \t]*\r?\n\s*"')
_LINES = 'JSONL is read, one request a line, such as {"prompt": "..."}'
_OF_TOKENIZERS = {"added_tokens", "pre_tokenizer", "tokenizer_class"}
_OF_MODELS = {"architectures", "hidden_size"}


def check_kind(path: Path, name: str) -> None:
    """Raise UsageError if the plain file at `path`, which the user calls `name`, is plainly no JSONL.

    What is only wrong in some lines is left to the reader of lines.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from None
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise UsageError(f"{name} is {what}; {_LINES}")
    text = head.decode("utf-8-sig", "replace").lstrip()
    found = _array(text, name) or _document(text) or _table(text, name)
    if found is not None:
        raise UsageError(f"{name} is {found}")


def _array(text: str, name: str) -> str | None:
    """A file that is one JSON array of objects or texts; rows of plain values are left alone."""
    if not text.startswith("[") or not text[1:].lstrip().startswith(("{", '"', "[")):
        return None
    return (
        "one JSON array, not one object a line; "
        f"turn it into lines: jq -c '.[]' {name} > FILE.jsonl"
    )


def _document(text: str) -> str | None:
    """One JSON object over many lines: a tokenizer, a configuration, or whatever else."""
    if not text.startswith("{") or _is_json(text.partition("\n")[0]):
        return _of_keys(text.partition("\n")[0])
    if not _OPENED.match(text):
        return None  # a bad first line, or one longer than what was read
    found = next((what for keys, what in _KINDS if any(f'"{key}"' in text for key in keys)), None)
    return found or "one JSON object over several lines; write one object a line: jq -c . FILE"


_KINDS = (
    (_OF_TOKENIZERS, f"a model's tokenizer, not requests; name its folder with --model. {_LINES}"),
    (_OF_MODELS, f"a model's configuration, not requests. {_LINES}"),
)


def _of_keys(line: str) -> str | None:
    value: Any = json.loads(line) if line and _is_json(line) else None
    if not isinstance(value, dict) or {"prompt", "messages", "body"} & value.keys():
        return None
    return next((what for keys, what in _KINDS if keys & value.keys()), None)


def _table(text: str, name: str) -> str | None:
    first = text.partition("\n")[0].strip()
    if not first or first.startswith(("{", "[", '"{')) or _is_json(first):
        return None
    if Path(name).suffix.lower() in (".csv", ".tsv"):
        return f"a table of text, not JSONL; {_LINES}. A table can be given as .parquet, too"
    return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
