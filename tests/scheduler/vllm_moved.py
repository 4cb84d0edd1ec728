# SPDX-License-Identifier: Apache-2.0
"""What only tests ask of vLLM, and what lies elsewhere in one of the supported versions."""

from __future__ import annotations

try:
    from vllm.entrypoints.common.cli_args import make_arg_parser as serve_parser
except ImportError:  # vLLM 0.32
    from vllm.entrypoints.launchers.cli_args import make_arg_parser as serve_parser

__all__ = ["serve_parser"]
