# SPDX-License-Identifier: Apache-2.0
"""Loggers below vLLM's own, so that its log level, format and destination hold for us too."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """The logger for module ``name``, as a child of vLLM's configured logger."""
    return logging.getLogger(f"vllm.batchllm.{name.rpartition('.')[2]}")
