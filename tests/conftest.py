# SPDX-License-Identifier: Apache-2.0
"""Settings shared by all rings of tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# One process, both cores, a small cache: what the machine-independent tests need of vLLM.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # spinning threads starve on a busy machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

for ring in ("unit", "scheduler", "engine", "upstream"):
    sys.path.insert(0, str(Path(__file__).parent / ring))

settings.register_profile("default", deadline=None, max_examples=100)
settings.load_profile("default")
