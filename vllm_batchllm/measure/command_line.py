# SPDX-License-Identifier: Apache-2.0
"""What the commands that measure have in common: options, quiet logs, where the page is."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_batchllm.errors import UsageError
from vllm_batchllm.messages import clip


def parse_options(order: str | None, pairs: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """batchllm options from `--order` and `--option KEY=VALUE`, values as JSON or text.

    Raises:
        UsageError: no `=`, an option given twice, or refused by `BatchLLMConfig`.
    """
    options = {} if order is None else {"order": order}
    read_pairs(pairs, options)
    if options:
        from vllm_batchllm.config import BatchLLMConfig  # slow to load, and not for --help

        try:
            BatchLLMConfig.parse(options)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return tuple(options.items())


def read_pairs(pairs: Sequence[str], into: dict[str, Any]) -> None:
    """Add KEY=VALUE pairs to `into`, values as JSON or text.

    Raises:
        UsageError: no `=`, or an option given twice.
    """
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"option {clip(pair)} must have the form KEY=VALUE")
        if key in into:
            raise UsageError(f"option {clip(key)} is given twice")
        try:
            into[key] = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or more than Python reads
            into[key] = text


def quieten() -> None:
    """Keep start-up logs from burying the progress; whoever sets the variables gets them."""
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        # vLLM reads the variable when it starts an engine, and warns before.
        logging.getLogger("vllm").setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")


def tell_page(folder: Path | None) -> None:
    """Say where the page is; a run that was interrupted at once has none."""
    from vllm_batchllm.page.page import PAGE_NAME

    if folder and (folder / PAGE_NAME).is_file():
        print(f"page: {folder / PAGE_NAME}", file=sys.stderr)
