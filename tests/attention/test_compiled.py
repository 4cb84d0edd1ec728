# SPDX-License-Identifier: Apache-2.0
"""Everything that is shipped, compiled for devices that are not here: no spills, within shared memory, on matrix units."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from vllm_batchllm.attention.tiles import ARCHITECTURES, KV_TYPES, SHIPPED

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "compile_kernels.py"


@cache
def compiled(architecture: str) -> list[dict]:
    """What became of every kernel; in a process of its own, since Triton is interpreted in this one."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"compiled-{architecture}-{os.getpid()}.json"
    command = [sys.executable, str(SCRIPT), "--only", architecture, "--json", str(file)]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(file.read_text())
    file.unlink()
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_shipped_kernels_compile_without_spills(architecture):
    found = compiled(architecture.name)
    assert {each["kernel"] for each in found} >= {
        "prefix",
        "equal_blocks",
        "finish",
        "merge_into",
        "merge",
    }
    for each in found:
        assert each["spill_bytes"] == 0, each
        assert each["shared_bytes"] <= architecture.shared_bytes, each
    prefix = [each for each in found if each["kernel"] == "prefix"]
    heads = {head for name, head in SHIPPED if name == architecture.name}
    assert {(each["head_size"], each["kv_type"]) for each in prefix} == {
        (head, kv) for head in heads for kv in KV_TYPES[architecture.name]
    }
    for each in prefix:
        uses = each["instructions"]
        if architecture.backend == "hip":
            assert uses["mfma"] > 0, each
            continue
        assert uses.get("LDGSTS.E.BYPASS.128", 0) > 0, (
            each
        )  # copies of 16 bytes that nobody waits for
        if each["m"] >= 64 and architecture.name == "sm_90":
            assert uses.get("HGMMA", 0) > 0, each
        else:
            assert uses.get("HMMA", 0) + uses.get("UTCHMMA", 0) > 0, each
