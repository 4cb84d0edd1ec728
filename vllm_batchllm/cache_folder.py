# SPDX-License-Identifier: Apache-2.0
"""Where the package keeps what can be made anew: generated models, calibrations, records of kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`vllm-batchllm` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is none, says the specification of the variable.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "vllm-batchllm"
